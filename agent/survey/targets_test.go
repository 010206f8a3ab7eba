package survey

import (
	"errors"
	"net/netip"
	"testing"
	"time"

	"ctguard/policy"
)

// A service whose rule leads elsewhere than before stays tracked until nothing goes where it led then, and is not
// asked about until what lived untracked has entries; one that is new is asked about at once, one without a
// translation never.
func TestTargets(t *testing.T) {
	web := policy.Selector{Protocol: policy.TCP, Port: 80, Local: netip.MustParsePrefix("192.0.2.1/32"),
		Device: "wan0", Uplink: "wan0", Inside: netip.MustParseAddrPort("10.0.0.2:8080")}
	moved := web
	moved.Inside = netip.MustParseAddrPort("10.0.0.3:8080")
	routed := web
	routed.Inside = netip.MustParseAddrPort("192.0.2.1:80")
	left, asked, fault := 0, 0, error(nil)
	var s Surveyor
	s.CountElsewhere(func(all []policy.Selector) (map[policy.Selector]int, error) {
		asked++
		return map[policy.Selector]int{all[0]: left}, fault
	})
	now := time.Unix(1000, 0)
	judge := func(what string, one policy.Selector, later time.Duration, refused bool, count int) {
		t.Helper()
		now = now.Add(later)
		found := Inside{Services: []policy.Selector{one}, Refused: make(map[policy.Selector]string)}
		err := s.targets.judge(found, now)
		if got := found.Refused[one]; (got != "") != refused || asked != count || (err != nil) != (fault != nil && refused) {
			t.Errorf("%s: refused for %q, asked %d times (%v), want %t and %d", what, got, asked, err, refused, count)
		}
	}
	judge("new", web, 0, false, 1)
	judge("as before", web, time.Second, false, 1)
	left = 3
	judge("it goes elsewhere", moved, time.Second, true, 1)
	judge("connections get their entries", moved, ruleSettles-time.Second, true, 1)
	judge("three go where it led before", moved, time.Second, true, 2)
	left = 0
	judge("soon after", moved, time.Second, true, 2)
	judge("none does", moved, countAgain, false, 3)
	judge("once more", moved, countAgain, false, 3)
	judge("back", web, time.Second, true, 3)
	fault = errors.New("no answer")
	judge("the table can't be read", web, ruleSettles, true, 4)
	fault = nil
	judge("it can", web, countAgain, false, 5)
	judge("routed", routed, time.Second, false, 5)
	left = 1
	judge("it was away", web, time.Second, true, 6)
}
