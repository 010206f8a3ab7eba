package survey

import (
	"errors"
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

// targets knows where translated services lead.
type targets struct {
	// count counts the connections of a service that go elsewhere than its rule says now.
	count func(policy.Selector) (int, error)
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
// now, as count counts them.
func (s *Surveyor) CountElsewhere(count func(policy.Selector) (int, error)) { s.targets.count = count }

// judge adds the services that must stay tracked for that to those of found that must anyhow.
func (t *targets) judge(found Inside, now time.Time) (faults error) {
	if t.count == nil {
		return nil
	}
	known := make(map[policy.Selector]target)
	for _, s := range found.Services {
		if !s.Translated() {
			continue
		}
		asked := s
		asked.Inside = netip.AddrPort{}
		one, seen := t.known[asked]
		switch {
		case !seen:
			one = target{inside: s.Inside, reason: "it is new"}
		case one.inside != s.Inside:
			one = target{inside: s.Inside, changed: now, reason: "its rule has just been changed, and connections of before " +
				"go elsewhere"}
		}
		if one.reason != "" && now.Sub(one.changed) >= ruleSettles && now.Sub(one.counted) >= countAgain {
			err := one.find(s, t.count, now)
			faults = errors.Join(faults, err)
		}
		if known[asked] = one; one.reason != "" && found.Refused[s] == "" {
			found.Refused[s] = one.reason
		}
	}
	t.known = known
	return faults
}

// find counts the connections that go elsewhere.
func (t *target) find(s policy.Selector, count func(policy.Selector) (int, error), now time.Time) error {
	n, err := count(s)
	t.counted, t.reason = now, ""
	switch {
	case err != nil:
		t.reason = "it is not known whether all of its connections go where its rule says now"
		return fmt.Errorf("look for connections of %s that go elsewhere: %w", s, err)
	case n > 0:
		t.reason = fmt.Sprintf("%d of its connections go elsewhere, from before its rule was changed", n)
	}
	return nil
}
