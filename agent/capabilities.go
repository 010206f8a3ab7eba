package agent

import (
	"errors"
	"fmt"

	"ctguard/agent/conntrack"
	"ctguard/nft"
)

// errNoRules says that this kernel can't make ctguard's rules at all.
var errNoRules = errors.New("this kernel's nftables lacks what ctguard's rules need (sets with intervals and timeouts, notrack, fib)")

// probe finds out what this kernel can do, each in a throw-away network namespace, and returns how
// to open the table inet ctguard and what is missing. The packages work around what they miss by
// themselves, or the step that needs it is skipped.
func probe() (open []nft.Option, missing []string, err error) {
	rules, err := nft.Probe()
	if err != nil {
		return nil, nil, err
	}
	if !rules.Rules {
		return nil, nil, errNoRules
	}
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
		return nil, nil, err
	}
	return open, append(missing, entries.Missing()...), nil
}
