package policy

import (
	"strings"
	"testing"
	"time"
)

// A host whose table is always fuller than the lowest mark learns its ordinary day while that is steady, and says until
// then what it waits for. A table that is filled, however slowly, or that refuses anybody, teaches nothing; nor does
// a steady one where calm has taught something this week.
func TestSteadyTableIsLearntFrom(t *testing.T) {
	const office = "192.0.2.1/32"
	for name, one := range map[string]struct {
		count  func(minute int) int
		drops  int  // a minute
		known  bool // from calm, a day ago
		learnt bool
	}{
		"steady":        {count: func(int) int { return 6600 }, learnt: true},
		"wavering":      {count: func(m int) int { return 6600 + m%5*100 }, learnt: true},
		"growing":       {count: func(m int) int { return 6600 + 9*m }},
		"refusing":      {count: func(int) int { return 6600 }, drops: 3},
		"nearly full":   {count: func(int) int { return 8600 }},
		"another's day": {count: func(int) int { return 6600 }, known: true},
	} {
		m := New(Defaults(Server))
		if one.known {
			m.Recall(OrdinaryDay{Updated: dayStart.Add(-24 * time.Hour), Flows: true})
		}
		o := Observation{Capacity: 10_000, Host: Host{Admin: map[string]int{tcpLoose: 1}}}
		usual := func() float64 { return m.OrdinaryDay().Usual(sourceOf(office)).Assured }
		scans := false
		for second := 0; second < 3*3600; second += 5 {
			o.Time, o.Count, o.Census = dayStart.Add(time.Duration(second)*time.Second), one.count(second/60), nil
			if second%60 == 0 {
				o.Kernel.Drop += uint64(one.drops)
				o.Census = calmCensus(o.Time, map[string]int{office: o.Count})
			}
			d := m.Tick(o)
			scans = scans || d.Steady
			switch status := m.DayStatus().String(); {
			case second == 600 && !one.known && !strings.Contains(status, "fuller than the lowest mark (60 %), so it has to be "+
				"steady for 1h0m0s first"):
				t.Errorf("%s: after ten minutes: %s", name, status)
			case second == 3540 && usual() > 0:
				t.Errorf("%s: within an hour %.0f entries are usual", name, usual())
			}
		}
		if (usual() > 6000) != one.learnt || scans != one.learnt {
			t.Errorf("%s: %.0f entries are usual, scans asked for: %v", name, usual(), scans)
		}
		if status := m.DayStatus().String(); one.learnt != strings.Contains(status, "of a steady table") {
			t.Errorf("%s: %s", name, status)
		}
	}
}

// What was learnt from a steady table gives way to what calm teaches, and is then learnt no more.
func TestCalmAfterSteady(t *testing.T) {
	m := New(Defaults(Server))
	m.Recall(OrdinaryDay{Updated: dayStart, Flows: true, Steady: true})
	o := Observation{Capacity: 10_000, Count: 1000, Host: Host{Admin: map[string]int{tcpLoose: 1}}}
	for i := range 10 {
		o.Time = dayStart.Add(time.Duration(i) * time.Second)
		m.Tick(o)
	}
	if m.OrdinaryDay().Steady {
		t.Error("calm counts as steady")
	}
}

// A small sample would make a crowd of a few entries: it teaches nothing of a steady table.
func TestSteadySamples(t *testing.T) {
	m := New(Defaults(Server))
	o := Observation{Capacity: 10_000, Count: 6600, Host: Host{Admin: map[string]int{tcpLoose: 1}}}
	for second := 0; second < 2*3600; second += 5 {
		o.Time, o.Census = dayStart.Add(time.Duration(second)*time.Second), nil
		if second%60 == 0 {
			o.Census = calmCensus(o.Time, map[string]int{"192.0.2.1/32": 500})
			o.Census.Total, o.Census.Whole = 6600, false
		}
		m.Tick(o)
	}
	if m.OrdinaryDay().Known() {
		t.Errorf("500 entries of 6600 taught: %s", m.DayStatus())
	}
}
