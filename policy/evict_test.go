package policy

import (
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
