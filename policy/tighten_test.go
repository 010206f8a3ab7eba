package policy

import "testing"

// Finished entries go where there are some: a pass over a table of conversations costs as much as one that brings
// something. Where nothing is known, it is made.
func TestNoPassWhereNothingIsFinished(t *testing.T) {
	for finished, want := range map[int]bool{-1: true, 0: false, 10: false, 500: true} {
		m := New(Defaults(Server))
		o := Observation{Capacity: 10_000, Count: 9900, Time: dayStart}
		if finished >= 0 {
			o.Census = &Census{Time: o.Time, Whole: true, Seen: o.Count, Total: o.Count}
			o.Census.Classes[Closing], o.Census.Classes[Assured] = finished, o.Count-finished
		}
		if d := m.Tick(o); (d.Posture.Retire.Silent > 0) != want {
			t.Errorf("%d of %d entries finished: %+v, want a pass: %t", finished, o.Count, d.Posture.Retire, want)
		}
	}
}
