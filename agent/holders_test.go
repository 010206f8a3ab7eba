package agent

import (
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"ctguard/agent/control"
	"ctguard/policy"
)

// Who holds the table is told for the whole of it where a part was seen, largest first, beside what each usually
// holds, and bounded.
func TestHolders(t *testing.T) {
	known, newcomer := netip.MustParsePrefix("192.0.2.1/32"), netip.MustParsePrefix("2001:db8::/64")
	day := &policy.OrdinaryDay{Sources: map[policy.Source]*policy.Usual{{Prefix: known}: {Assured: 7, Transient: 2}}}
	c := &policy.Census{Time: time.Unix(1, 0), Total: 1000, Seen: 100, Distinct: 2,
		Protocols: map[uint8]int{6: 90, 17: 10}, Roles: [policy.NumRoles]int{policy.Local: 30, policy.Outward: 10},
		Sources: []policy.Holding{{Prefix: newcomer, Entries: 60}, {Prefix: known, Entries: 40}}}
	c.Classes[0] = 100
	want := &control.HoldersStatus{Time: time.Unix(1, 0), Sampled: true, Distinct: 2,
		States: map[string]int{"unreplied": 1000}, Protocols: map[string]int{"tcp": 900, "udp": 100},
		Roles: map[string]float64{"local": 75, "outward": 25},
		Sources: []control.HolderStatus{{Prefix: newcomer, Entries: 600},
			{Prefix: known, Entries: 400, Usual: 9, Inside: true}}}
	host := policy.Host{Inside: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}}
	same := cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })
	if diff := cmp.Diff(want, holders(c, day, host), same); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	c.Sources = make([]policy.Holding, 5000)
	if n := len(holders(c, day, host).Sources); n != control.MostHolders {
		t.Errorf("%d sources are told", n)
	}
}
