package agent

import (
	"errors"
	"fmt"

	"ctguard/agent/conntrack"
	"ctguard/nft"
	"ctguard/policy"
)

// errNoRules says that this kernel can't make ctguard's rules at all.
var errNoRules = errors.New("this kernel's nftables lacks what ctguard's rules need (sets with intervals and timeouts, notrack, fib)")

// probe finds out what this kernel can do, each in a throw-away network namespace, and returns how
// to open the table inet ctguard, what is missing, and which steps this kernel can't do at all. What
// else is missing the packages work around by themselves.
func probe() (open []nft.Option, missing []string, lacking map[policy.StepName]string, err error) {
	rules, err := nft.Probe()
	if err != nil {
		return nil, nil, nil, err
	}
	if !rules.Rules {
		return nil, nil, nil, errNoRules
	}
	lacking = lackingSteps(rules)
	note := func(has bool, format string, args ...any) {
		if !has {
			missing = append(missing, fmt.Sprintf(format, args...))
		}
	}
	if !rules.Owner {
		open = append(open, nft.Unowned())
	}
	note(rules.Owner, "tables owned by a process (Linux 5.12): after kill -9 the rules stay until the next start or ctguard revert")
	note(rules.Reject, "reject at prerouting (Linux 5.9): evict.reject drops instead")
	entries, err := conntrack.Probe()
	if err != nil {
		return nil, nil, nil, err
	}
	return open, append(missing, entries.Missing()...), lacking, nil
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
