package policy

import (
	"net/netip"
	"testing"
	"time"
)

// ticking returns what a server's machine is shown, and what ticks it a quarter of a second later, with a census or
// without.
func ticking() (*Observation, func(*Census) Decision) {
	m := New(Defaults(Server))
	o := &Observation{Time: time.Unix(1000, 0), Count: 1000, Capacity: 65536}
	return o, func(census *Census) Decision {
		o.Time = o.Time.Add(250 * time.Millisecond)
		if o.Census = census; census != nil {
			census.Time = o.Time
		}
		return m.Tick(*o)
	}
}

// Who opens flows is told by two scans, so the second of an attack is urgent, and no other after it.
func TestSecondScanIsUrgent(t *testing.T) {
	o, tick := ticking()
	tick(nil)
	o.Count = 60000
	if d := tick(nil); d.Scan != WholeScan || d.Compare {
		t.Errorf("before the first scan: asked for %v, to compare %t", d.Scan, d.Compare)
	}
	census := Census{Total: 60000, Seen: 60000, Whole: true}
	first, second := census, census
	if d := tick(&first); !d.Compare {
		t.Error("the second scan is no more urgent than any other")
	}
	if d := tick(&second); d.Compare {
		t.Error("the third scan is urgent as well")
	}
}

// The first scans of an attack find nobody where its entries have but begun to take the place of others: the next ones
// are as urgent. Who looks in vain for long takes its time, until somebody is found.
func TestScansInVain(t *testing.T) {
	o, tick := ticking()
	tick(nil)
	o.Count = 64000
	if d := tick(nil); !d.Hurry {
		t.Error("the first scan is in no hurry")
	}
	nobody := Census{Total: 64000, Seen: 64000, Whole: true}
	for i := 1; i <= vainScans+2; i++ {
		census := nobody
		if d := tick(&census); d.Hurry != (i < vainScans) {
			t.Errorf("after %d scans that found nobody: hurry %t", i, d.Hurry)
		}
	}
	somebody := nobody
	somebody.Sources = []Holding{{Prefix: netip.MustParsePrefix("198.18.0.1/32"), Entries: 60000}}
	somebody.Sources[0].Classes[Assured], somebody.Sources[0].Proven = 60000, 60000
	somebody.Classes[Assured] = 60000
	if d := tick(&somebody); !d.Hurry || len(d.Posture.Limits) != 1 {
		t.Errorf("somebody holds the table: hurry %t, limits %v", d.Hurry, d.Posture.Limits)
	}
}

// What asks by UDP may have been sent by anybody, so who holds too much of it is limited in all but TCP; connections
// that have shaken hands are the source's own. A limit that was for all stays so until it ends.
func TestLimitsByWhatIsProven(t *testing.T) {
	const most = 30_000
	udpOf := func(n int) (h Holding) {
		h.Entries, h.Classes[Assured] = n, n
		return h
	}
	tcpOf := func(n int) Holding {
		h := udpOf(n)
		h.Proven = n
		return h
	}
	both := udpOf(most)
	both.Entries, both.Classes[Assured], both.Proven = most+200, most+200, 200
	for name, c := range map[string]struct {
		held   []Holding // census by census
		butTCP bool
	}{
		"udp":                    {[]Holding{udpOf(most), udpOf(most)}, true},
		"tcp":                    {[]Holding{tcpOf(most), tcpOf(most)}, false},
		"udp beside a little":    {[]Holding{both, both}, true},
		"udp, and then tcp":      {[]Holding{udpOf(most), tcpOf(most)}, false},
		"tcp, and then in doubt": {[]Holding{tcpOf(most), udpOf(most)}, false},
	} {
		m := New(Defaults(Server))
		o := Observation{Time: time.Unix(1000, 0), Capacity: 65536}
		var limits []Limit
		for _, held := range c.held {
			held.Prefix = netip.MustParsePrefix("198.51.100.7/32")
			census := &Census{Total: 64_000, Seen: 64_000, Whole: true, Sources: []Holding{held}}
			census.Rest.Entries = 64_000 - held.Entries
			census.Rest.Classes[Assured] = census.Rest.Entries
			census.Classes[Assured] = 64_000
			o.Time, o.Count = o.Time.Add(time.Second), 64_000
			census.Time, o.Census = o.Time, census
			limits = m.Tick(o).Posture.Limits
		}
		if len(limits) != 1 || limits[0].ButTCP != c.butTCP {
			t.Errorf("%s: limits %+v, want one, of all but TCP: %t", name, limits, c.butTCP)
		}
	}
}
