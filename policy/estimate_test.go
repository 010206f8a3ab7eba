package policy

import (
	"math/rand/v2"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestEstimate(t *testing.T) {
	for _, c := range []struct {
		name           string
		census         Census
		seen           int
		mid, low, high int
	}{
		{"whole", Census{Seen: 1000, Total: 1000, Whole: true}, 10, 10, 10, 10},
		{"whole, while the table shrank", Census{Seen: 900, Total: 1000, Whole: true}, 10, 10, 10, 10},
		{"all of it seen, end not reached", Census{Seen: 1000, Total: 1000}, 10, 10, 10, 10},
		{"the table grew under the scan", Census{Seen: 1200, Total: 1000}, 10, 10, 10, 10},
		{"nothing seen at all", Census{Seen: 0, Total: 1000}, 0, 0, 0, 1000},
		{"empty", Census{}, 0, 0, 0, 0},
		{"one in a hundred", Census{Seen: 16384, Total: 1_000_000}, 164, 10010, 7745, 12919},
		{"never seen", Census{Seen: 16384, Total: 1_000_000}, 0, 0, 0, 709},
		{"one seen", Census{Seen: 16384, Total: 1_000_000}, 1, 61, 1, 822},
		{"everything", Census{Seen: 16384, Total: 1_000_000}, 16384, 1_000_000, 999_291, 1_000_000},
		{"more than was seen", Census{Seen: 100, Total: 200}, 300, 200, 188, 200},
		{"less than nothing", Census{Seen: 100, Total: 200}, -5, 0, 0, 12},
	} {
		t.Run(c.name, func(t *testing.T) {
			mid, low, high := c.census.Estimate(c.seen)
			if mid != c.mid || low != c.low || high != c.high {
				t.Errorf("Estimate(%d) = %d, %d, %d; want %d, %d, %d", c.seen, mid, low, high, c.mid, c.low, c.high)
			}
		})
	}
}

func TestEstimateProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		total := rapid.IntRange(1, 4_000_000).Draw(t, "total")
		c := Census{Total: total, Seen: rapid.IntRange(1, total).Draw(t, "seen")}
		of := rapid.IntRange(0, c.Seen).Draw(t, "of source")
		mid, low, high := c.Estimate(of)
		if of > low || low > mid || mid > high || high > total-(c.Seen-of) {
			t.Fatalf(
				"%d of %d of %d: bounds %d ≤ %d ≤ %d out of order or beyond the certain", of, c.Seen, total, low, mid, high)
		}
		if of < c.Seen {
			m, l, h := c.Estimate(of + 1)
			if m < mid || l < low || h < high {
				t.Fatalf("one more seen lowers the estimate: %d, %d, %d after %d, %d, %d", m, l, h, mid, low, high)
			}
		}
	})
}

// The bounds hold as often as they promise, on samples drawn as the kernel draws them.
func TestEstimateCoverage(t *testing.T) {
	const total, sample, trials = 50_000, 4_000, 3_000
	rng := rand.New(rand.NewPCG(1, 2))
	for _, held := range []int{5, 50, 500, 5_000, 25_000} {
		low, high := 0, 0
		for range trials {
			seen, left := 0, held
			for i := range sample {
				if rng.IntN(total-i) < left {
					seen++
					left--
				}
			}
			c := Census{Total: total, Seen: sample}
			_, l, h := c.Estimate(seen)
			if held < l {
				low++
			}
			if held > h {
				high++
			}
		}
		// 1.5 expected on each side; 12 is far outside chance.
		if low > 12 || high > 12 {
			t.Errorf("source with %d entries: below the lower bound %d times, above the upper one %d times in %d",
				held, low, high, trials)
		}
	}
}

// The kernel counts as dropped what races with a packet of its own flow, and what TCP's states have no place for, at
// any fill: that is no full table, and no pressure.
func TestOtherDropsAreNoPressure(t *testing.T) {
	for name, c := range map[string]struct {
		count  int
		failed uint64
		full   bool
	}{
		"lost races": {960, 1, false}, "no place in TCP": {700, 0, false}, "a full table": {960, 0, true},
	} {
		var g gauge
		o := Observation{Capacity: 1000, Count: c.count}
		var r reading
		for i := range 4 {
			o.Time = dayStart.Add(time.Duration(i) * time.Second)
			o.Kernel.Drop, o.Kernel.InsertFailed = o.Kernel.Drop+5, o.Kernel.InsertFailed+5*c.failed
			r = g.read(o, 10*time.Second)
		}
		if full := r.pressure >= 100; full != c.full {
			t.Errorf("%s: pressure %.0f %% at a fill of %.0f %%", name, r.pressure, r.fill)
		}
	}
}
