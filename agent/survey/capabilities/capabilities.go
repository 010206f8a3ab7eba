package capabilities

import (
	"errors"

	"ctguard/agent/conntrack"
	"ctguard/nft"
	"ctguard/policy"
)

// ErrNoRules says that this kernel can't make ctguard's rules at all.
var ErrNoRules = errors.New("this kernel's nftables lacks what ctguard's rules need " +
	"(sets with intervals and timeouts, notrack, fib)")

// Found is what this kernel can do, for those who use it.
type Found struct {
	Kernel  nft.Capabilities           // what was found, as [Of] takes it
	Rules   []nft.Option               // how to open the table inet ctguard
	Missing []string                   // what this kernel lacks and what happens instead, for an operator
	Lacking map[policy.StepName]string // steps that this kernel can't do at all, with the reasons
	Tracked string                     // why forwarded services must stay tracked; empty if nothing speaks against it
	// why synproxy can't stand in front of forwarded services; empty if nothing speaks against it
	Unproxied string
}

// Probe tries what this kernel can do. What is not in the answer the packages work around by themselves.
func Probe() (Found, error) {
	rules, err := nft.Probe()
	if err != nil {
		return Found{}, err
	}
	return Of(rules)
}

// Of says what a kernel can do whose nftables was found to be able to do so much.
func Of(rules nft.Capabilities) (Found, error) {
	if !rules.Rules {
		return Found{}, ErrNoRules
	}
	c := Found{Kernel: rules, Lacking: lackingSteps(rules)}
	note := func(has bool, text string) {
		if !has {
			c.Missing = append(c.Missing, text)
		}
	}
	if !rules.Owner {
		c.Rules = append(c.Rules, nft.Unowned())
	}
	note(rules.Owner, "tables owned by a process (Linux 5.12): "+
		"after kill -9 the rules stay until the next start or ctguard revert")
	note(rules.Reject, "reject at prerouting (Linux 5.9): evict.reject drops instead")
	if !rules.Forward {
		c.Tracked = "this kernel's nftables can't translate without conntrack"
		note(false, "translation without conntrack: forwarded services stay tracked")
	}
	if !rules.Cookies {
		c.Unproxied = "this kernel's nftables can't answer handshakes in an inside host's place"
		note(false, "SYN cookies before translation (Linux 5.3): forwarded services are left to the other steps")
	}
	return c, nil
}

// Slower waits for what this kernel lacks and is done in another way, with the same result.
func Slower() ([]string, error) {
	entries, err := conntrack.Probe()
	if err != nil {
		return nil, err
	}
	return entries.Missing(), nil
}

// lackingSteps returns the steps that need rules which this kernel does not have.
func lackingSteps(rules nft.Capabilities) map[policy.StepName]string {
	lacking := make(map[policy.StepName]string)
	if !rules.Socket {
		lacking[policy.ClosedPorts] = "this kernel's nftables lacks the expression socket (Linux 4.20)"
	}
	if !rules.Synproxy {
		lacking[policy.Synproxy] = "this kernel's nftables lacks the statement synproxy (Linux 5.3)"
	}
	return lacking
}
