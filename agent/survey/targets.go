package survey

import (
	"fmt"
	"net/netip"
	"time"

	"ctguard/policy"
)

// Where the rule of a translated service is changed, connections of before go on to where it led then: conntrack knows
// their way, and rules that translate without an entry don't. To the new inside host their packets are those of
// strangers, which it resets. So such a service stays tracked until none of them is left.
//
// Whatever lived untracked gets its entries when the first survey has shown the change, so nobody is counted before
// that.
const (
	ruleSettles = 5 * time.Second
	countAgain  = 30 * time.Second
)

// counter counts the connections of each service that go elsewhere than its rule says now.
type counter func([]policy.Selector) (map[policy.Selector]int, error)

// targets knows where translated services lead.
type targets struct {
	count counter
	known map[policy.Selector]target // by the service without its inside host
}

// target is where a service leads.
type target struct {
	inside  netip.AddrPort
	changed time.Time // when it was first seen to lead there and not elsewhere; zero where it never did
	counted time.Time // when its connections were counted last
	reason  string    // why it must stay tracked; empty where all connections go there
}

// CountElsewhere has translated services stay tracked while some of their connections go elsewhere than their rules say
// now, as count counts them: of all that are to be counted at once, for it takes a pass over the table.
func (s *Surveyor) CountElsewhere(count func([]policy.Selector) (map[policy.Selector]int, error)) {
	s.targets.count = count
}

// judge adds the services that must stay tracked for that to those of found that must anyhow.
func (t *targets) judge(found Inside, now time.Time) (err error) {
	if t.count == nil {
		return nil
	}
	known := make(map[policy.Selector]target)
	var due []policy.Selector
	for _, s := range found.Services {
		if !s.Translated() || found.Refused[s] != "" {
			continue // who is tracked anyhow is new when he may go
		}
		one, seen := t.known[askedFor(s)]
		switch {
		case !seen:
			one = target{inside: s.Inside, reason: "it is new"}
		case one.inside != s.Inside:
			one = target{inside: s.Inside, changed: now, reason: "its rule has just been changed, and connections of before " +
				"go elsewhere"}
		}
		if one.reason != "" && now.Sub(one.changed) >= ruleSettles && now.Sub(one.counted) >= countAgain {
			due, one.counted = append(due, s), now
		}
		known[askedFor(s)] = one
	}
	if t.known = known; len(due) > 0 {
		err = t.find(due)
	}
	for _, s := range found.Services {
		if one := known[askedFor(s)]; one.reason != "" && one.inside == s.Inside {
			found.Refused[s] = one.reason
		}
	}
	return err
}

// askedFor is a service as clients know it.
func askedFor(s policy.Selector) policy.Selector {
	s.Inside = netip.AddrPort{}
	return s
}

// find counts the connections of services that go elsewhere.
func (t *targets) find(services []policy.Selector) error {
	counts, err := t.count(services)
	for _, s := range services {
		one := t.known[askedFor(s)]
		switch n := counts[s]; {
		case err != nil:
			one.reason = "it is not known whether all of its connections go where its rule says now"
		case n > 0:
			one.reason = fmt.Sprintf("%d of its connections go elsewhere, from before its rule was changed", n)
		default:
			one.reason = ""
		}
		t.known[askedFor(s)] = one
	}
	if err != nil {
		return fmt.Errorf("look for connections of forwarded services that go elsewhere: %w", err)
	}
	return nil
}
