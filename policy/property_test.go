package policy

import (
	"go/parser"
	"go/token"
	"math"
	"net/netip"
	"slices"
	"strconv"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// The fair share gives out no more than there is, and as much as it can: raising it by a little
// would be too much, unless everybody has what they want.
func TestFairShareSums(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		shares := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) share {
			return share{float64(rapid.IntRange(0, 5000).Draw(t, "entries")), rapid.Float64Range(0.5, 20).Draw(t, "weight")}
		}), 1, 200).Draw(t, "shares")
		rest := float64(rapid.IntRange(0, 5000).Draw(t, "rest"))
		target := float64(rapid.IntRange(1, 100_000).Draw(t, "target"))
		c := fairShare(shares, rest, target)
		switch given := rest + taken(shares, c); {
		case c == 0 && rest >= target:
		case math.IsInf(c, 1):
			if given > target+1e-6 {
				t.Fatalf("everybody has what they want, %v of %v", given, target)
			}
		case math.Abs(given-target) > 1e-6*target:
			t.Fatalf("share %v gives out %v of %v", c, given, target)
		}
	})
}

// walkPressure draws a course of fills and lets a machine walk along it; check sees each decision.
func walkPressure(t *rapid.T, m *Machine, check func(before int, o Observation, d Decision)) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	o := Observation{Capacity: 100_000, Host: Host{Admin: map[string]int{tcpLoose: 1}}}
	for range rapid.IntRange(1, 40).Draw(t, "stretches") {
		goal := rapid.IntRange(0, 100_000).Draw(t, "count")
		if rapid.Bool().Draw(t, "drops") {
			o.Kernel.Drop++
		}
		for range rapid.IntRange(1, 30).Draw(t, "ticks") {
			o.Time = now
			o.Count += (goal - o.Count) / 4
			before := m.ladder.level
			d := m.Tick(o)
			check(before, o, d)
			now = now.Add(d.Next)
		}
	}
}

// The level rises only when pressure has reached the enter mark of each step entered, and falls one
// step at a time, never while pressure is at the enter mark of the step left.
func TestLevelMovesAsMarksAllow(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := New(Defaults(Server))
		walkPressure(t, m, func(before int, _ Observation, d Decision) {
			switch after := d.Posture.Level; {
			case after > before:
				// After a step that brought nothing the next one needs only that step's mark.
				top := m.cfg.Steps[after-1]
				if before > 0 && working(m, before, after) == 1 {
					top = m.cfg.Steps[before-1]
				}
				if d.Pressure < top.Enter {
					t.Fatalf("entered %s at %v %%", top.Name, d.Pressure)
				}
			case working(m, after, before) > 1:
				t.Fatalf("fell from %d to %d at once", before, after)
			case after < before:
				if left := m.cfg.Steps[before-1]; d.Pressure >= left.Enter {
					t.Fatalf("left %s at %v %%", left.Name, d.Pressure)
				}
			}
			if top := d.Posture.Level; top > 0 && m.ladder.rungs[top-1].skipped {
				t.Fatalf("level %d, with a step on top that can do nothing", top)
			}
			if d.Next < m.cfg.Pressed || d.Next > m.cfg.Calm {
				t.Fatalf("next tick in %s", d.Next)
			}
		})
	})
}

// working counts the steps between two levels that can do something.
func working(m *Machine, low, high int) int {
	n := 0
	for i := low; i < high; i++ {
		if !m.ladder.rungs[i].skipped {
			n++
		}
	}
	return n
}

// A pinned level is the level, a cap is never passed, and both end by themselves.
func TestOverrideHolds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := New(Defaults(Server))
		ov := &Override{
			Kind:   rapid.SampledFrom([]OverrideKind{Pin, AtMost, Freeze}).Draw(t, "kind"),
			Level:  rapid.IntRange(0, len(StepNames())).Draw(t, "level"),
			Until:  time.Date(2026, 1, 1, 0, 0, rapid.IntRange(1, 60).Draw(t, "seconds"), 0, time.UTC),
			Reason: "test",
		}
		m.SetOverride(ov)
		walkPressure(t, m, func(before int, o Observation, d Decision) {
			switch level := d.Posture.Level; {
			case !o.Time.Before(ov.Until):
				if m.Override() != nil {
					t.Fatal("the override did not end")
				}
			case ov.Kind == Pin && level != ov.Level, ov.Kind == AtMost && level > ov.Level,
				ov.Kind == Freeze && level != before:
				t.Fatalf("level %d under %s", level, ov)
			}
		})
	})
}

// Constant pressure moves the level at most twice in an hour: up, and down again on trial.
func TestConstantPressureDoesNotOscillate(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := New(Defaults(Server))
		count := rapid.IntRange(0, 100_000).Draw(t, "count")
		ups, downs := 0, 0
		for now := (time.Time{}).Add(time.Hour); now.Before((time.Time{}).Add(2 * time.Hour)); {
			before := m.ladder.level
			d := m.Tick(Observation{Time: now, Count: count, Capacity: 100_000, Host: Host{Admin: map[string]int{tcpLoose: 1}}})
			ups += max(0, d.Posture.Level-before)
			downs += max(0, before-d.Posture.Level)
			now = now.Add(time.Second)
		}
		if ups > len(m.cfg.Steps) || downs > ups {
			t.Fatalf("%d steps up and %d down at a constant count of %d", ups, downs, count)
		}
	})
}

// A step whose limiter still drops thousands a second stays, however calm the table is.
func TestStepAtWorkStays(t *testing.T) {
	m := New(Defaults(Server))
	o := Observation{Time: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC), Count: 95_000, Capacity: 100_000,
		Host: Host{Admin: map[string]int{tcpLoose: 1}}}
	m.Tick(o)
	evict := 1 + slices.Index(StepNames(), Evict)
	if m.ladder.level <= evict {
		t.Fatalf("level %d at 95 %%", m.ladder.level)
	}
	o.Count = 20_000
	for range 600 {
		o.Time = o.Time.Add(time.Second)
		o.Work.LimitedDropped += 3000
		if d := m.Tick(o); d.Posture.Level < evict {
			t.Fatalf("left evict while it dropped 3000 a second, after %s", o.Time)
		}
	}
	for range 60 {
		o.Time = o.Time.Add(time.Second)
		m.Tick(o)
	}
	if m.ladder.level != 0 {
		t.Errorf("level %d a minute after the work went quiet", m.ladder.level)
	}
}

// Allowlisted sources are neither limited nor capped, whatever they hold, and a source that is
// neither two-way nor banned by config is swept but not limited.
func TestWhoIsLimited(t *testing.T) {
	heavy := func(prefix string, class Class, n int) Holding {
		h := Holding{Prefix: netip.MustParsePrefix(prefix), Entries: n}
		h.Classes[class] = n
		return h
	}
	census := &Census{Time: time.Unix(100, 0), Total: 70_000, Seen: 70_000, Whole: true, Sources: []Holding{
		heavy("198.51.100.1/32", Assured, 20_000), heavy("198.51.100.2/32", Assured, 25_000),
		heavy("198.51.100.3/32", Unreplied, 20_000),
		heavy("2001:db8:1::/64", Assured, 5_000),
	}}
	o := Observation{Time: time.Unix(100, 0), Count: 70_000, Capacity: 75_000, Host: Host{
		Admin: map[string]int{tcpLoose: 1}, Allow: []netip.Prefix{netip.MustParsePrefix("198.51.100.1/32")}}, Census: census}
	m := New(Defaults(Server))
	m.Tick(o)
	o.Time = o.Time.Add(time.Second)
	census.Time = o.Time
	p := m.Tick(o).Posture
	var limited []string
	for _, l := range p.Limits {
		limited = append(limited, l.Prefix.String())
	}
	if !slices.Equal(limited, []string{"198.51.100.2/32"}) {
		t.Errorf("limited: %v", limited)
	}
	for _, c := range p.Caps {
		switch c.Prefix.String() {
		case "198.51.100.1/32":
			t.Error("an allowlisted source is capped")
		case "198.51.100.3/32":
			if !c.SpareAssured {
				t.Error("a source that never answered is evicted like an offender")
			}
		}
	}
}

// Inside a gateway an address answers for what nobody answered it; a network does not, nor an address
// on a server. Existing conversations go on in any case.
func TestUnansweredOnAGateway(t *testing.T) {
	for _, c := range []struct {
		profile Profile
		prefix  string
		limited bool
	}{
		{NATGateway, "198.51.100.3/32", true},
		{NATGateway, "2001:db8:1::/64", false},
		{NATGateway, "2001:db8:1::7/128", true},
		{Server, "198.51.100.3/32", false},
	} {
		m := New(Defaults(c.profile))
		o := Observation{Time: time.Unix(100, 0), Count: 70_000, Capacity: 75_000,
			Host: Host{Admin: map[string]int{tcpLoose: 1}}}
		var p Posture
		for range 3 { // two censuses tell how fast entries come
			scan := Holding{Prefix: netip.MustParsePrefix(c.prefix), Entries: 60_000}
			scan.Classes[Unreplied] = scan.Entries
			o.Census = &Census{Time: o.Time, Total: 70_000, Seen: 70_000, Whole: true, Sources: []Holding{scan}}
			p = m.Tick(o).Posture
			o.Time = o.Time.Add(time.Second)
		}
		limited := slices.ContainsFunc(p.Limits, func(l Limit) bool {
			return l.Prefix.String() == c.prefix && l.Kind == LimitNew
		})
		if limited != c.limited || len(p.Limits) > 1 {
			t.Errorf("%s, %s: limits %v, want limited: %v", c.profile, c.prefix, p.Limits, c.limited)
		}
	}
}

// Package policy imports nothing that touches the system.
func TestPure(t *testing.T) {
	allowed := []string{"cmp", "errors", "fmt", "maps", "math", "net/netip", "slices", "strconv", "strings", "time"}
	packages, err := parser.ParseDir(token.NewFileSet(), ".", nil, parser.ImportsOnly)
	if err != nil {
		t.Fatal(err)
	}
	for name, file := range packages["policy"].Files {
		if len(name) > 8 && name[len(name)-8:] == "_test.go" {
			continue
		}
		for _, i := range file.Imports {
			if path, _ := strconv.Unquote(i.Path.Value); !slices.Contains(allowed, path) {
				t.Errorf("%s imports %s", name, path)
			}
		}
	}
}

// taken returns how much is given out when the fair share is c.
func taken(shares []share, c float64) float64 {
	sum := 0.0
	for _, s := range shares {
		sum += min(s.entries, c*s.weight)
	}
	return sum
}
