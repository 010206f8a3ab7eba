package policy

import (
	"math"
	"time"
)

// rateWindow is the span over which the net growth of the table is measured: long enough that the
// noise of a busy table is small against it, short enough that the first tick of a flood shows.
const rateWindow = time.Second

// gauge turns counts into a fill, a rate and a pressure.
type gauge struct {
	past  []mark // observations of the last rateWindow, oldest first
	drops uint64 // kernel drops at the last observation
	fill  float64
	seen  bool
}

// mark is how far the table had grown at one time: its count, and what ctguard took out of it, so
// that evicting does not look like the flood's end.
type mark struct {
	at     time.Time
	growth int64
}

// reading is what the gauge says of one observation.
type reading struct {
	fill     float64 // percent
	rate     float64 // net new entries per second, never negative
	drops    uint64  // new flows the kernel refused since the last observation
	ahead    float64 // percent that growth adds within the lookahead
	pressure float64 // percent
	halfOpen float64 // percent of the capacity that handshakes under way hold, or are about to
	synFlood bool    // that is too much
}

// ordinaryGrowth is how many percent of the table growth may add to the pressure of an ordinary day.
const ordinaryGrowth = 10

// growing reports whether the table grows faster than on an ordinary day.
func (r reading) growing() bool {
	return r.ahead >= ordinaryGrowth || r.drops > 0 && r.pressure >= r.fill+ordinaryGrowth
}

// fullFrom is the fill, in percent, from which flows that the kernel refused were refused because the table is full. It
// counts others as refused, too: packets that TCP's states have no place for, such as a SYN on an entry in TIME_WAIT
// that is about to go (nf_conntrack_in in net/netfilter/nf_conntrack_core.c).
const fullFrom = 90

// read takes one observation in. Pressure is the fill projected lookahead ahead, and at least 100 when the kernel
// refused flows of a table that is or just was as good as full.
func (g *gauge) read(o Observation, lookahead time.Duration) reading {
	capacity := float64(max(o.Capacity, 1))
	r := reading{fill: 100 * float64(o.Count) / capacity, rate: g.rate(o)}
	r.ahead = 100 * r.rate * lookahead.Seconds() / capacity
	r.pressure = r.fill + r.ahead

	drops := o.Kernel.refused()
	if g.seen {
		r.drops = since(drops, g.drops)
	}
	g.drops, g.seen = drops, true
	if r.drops > 0 && max(r.fill, g.fill) >= fullFrom {
		r.pressure = max(r.pressure, 100)
	}
	g.fill = r.fill
	return r
}

// rate returns the growth per second over the window. A fall larger than a twentieth of the table
// is the kernel collecting expired entries at one go: the window starts again there.
func (g *gauge) rate(o Observation) float64 {
	now := mark{o.Time, int64(o.Count) + int64(o.Work.Evicted)}
	if n := len(g.past); n > 0 {
		last := g.past[n-1]
		if !o.Time.After(last.at) || last.growth-now.growth > int64(o.Capacity/20) {
			g.past = g.past[:0]
		}
	}
	for len(g.past) > 1 && now.at.Sub(g.past[1].at) >= rateWindow {
		g.past = g.past[1:]
	}
	g.past = append(g.past, now)
	first := g.past[0]
	// A window that has only begun is measured as if it were whole: one small burst is no flood.
	span := max(now.at.Sub(first.at), rateWindow)
	return max(0, float64(now.growth-first.growth)/span.Seconds())
}

// secondsToFull returns when the table is full at this rate; +Inf when it is not filling.
func (r reading) secondsToFull(capacity int) float64 {
	if r.rate < 1 {
		return math.Inf(1)
	}
	return max(0, float64(capacity)*(100-r.fill)/100/r.rate)
}

// since returns how far a cumulative counter moved; one that jumped back stood still.
func since(now, before uint64) uint64 {
	if now < before {
		return 0
	}
	return now - before
}

// pace measures how fast a cumulative counter moves, smoothed over about a second.
type pace struct {
	at    time.Time
	value uint64
	Rate  float64 // per second
}

// update takes the counter's value in and returns its rate.
func (p *pace) update(now time.Time, value uint64) float64 {
	if dt := now.Sub(p.at).Seconds(); !p.at.IsZero() && dt > 0 {
		alpha := 1 - math.Exp(-dt/rateWindow.Seconds())
		p.Rate += alpha * (float64(since(value, p.value))/dt - p.Rate)
	}
	p.at, p.value = now, value
	return p.Rate
}
