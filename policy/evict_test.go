package policy

import (
	"net/netip"
	"testing"
	"time"
)

// Who opens flows is told by two scans, so the second of an attack is urgent, and no other after it.
func TestSecondScanIsUrgent(t *testing.T) {
	m := New(Defaults(Server))
	o := Observation{Time: time.Unix(1000, 0), Count: 1000, Capacity: 65536}
	tick := func(census *Census) Decision {
		o.Time = o.Time.Add(250 * time.Millisecond)
		if o.Census = census; census != nil {
			census.Time = o.Time
		}
		return m.Tick(o)
	}
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
	m := New(Defaults(Server))
	o := Observation{Time: time.Unix(1000, 0), Count: 1000, Capacity: 65536}
	tick := func(census *Census) Decision {
		o.Time = o.Time.Add(250 * time.Millisecond)
		if o.Census = census; census != nil {
			census.Time = o.Time
		}
		return m.Tick(o)
	}
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
	somebody.Sources[0].Classes[Assured] = 60000
	somebody.Classes[Assured] = 60000
	if d := tick(&somebody); !d.Hurry || len(d.Posture.Limits) != 1 {
		t.Errorf("somebody holds the table: hurry %t, limits %v", d.Hurry, d.Posture.Limits)
	}
}
