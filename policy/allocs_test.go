package policy

import (
	"net/netip"
	"testing"
	"time"
)

// TestAllocations holds what a decision may allocate: unlike time it says the same on every machine. The bounds are a
// quarter above what was found.
func TestAllocations(t *testing.T) {
	now := time.Unix(1000, 0)
	m := New(Defaults(Server))
	o := Observation{Time: now, Count: 1000, Capacity: 65536, Host: Host{Admin: map[string]int{tcpLoose: 1}}}
	calm := testing.AllocsPerRun(20, func() {
		o.Time = o.Time.Add(250 * time.Millisecond)
		m.Tick(o)
	})
	census := &Census{Total: 60000, Seen: 60000, Whole: true}
	for i := range 1000 {
		h := Holding{Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 32), Entries: 60}
		h.Classes[Assured], h.Proven = 60, 60
		census.Sources = append(census.Sources, h)
	}
	o.Count = 60000
	pressed := testing.AllocsPerRun(20, func() {
		o.Time = o.Time.Add(250 * time.Millisecond)
		census.Time, o.Census = o.Time, census
		m.Tick(o)
	})
	for _, c := range []struct {
		name      string
		got, most float64
	}{{"calm", calm, 7}, {"a crowded table and a census of 1000 sources", pressed, 7700}} {
		if c.got > c.most {
			t.Errorf("%s: %.0f allocations, want at most %.0f", c.name, c.got, c.most)
		}
	}
}
