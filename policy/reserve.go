package policy

import (
	"fmt"
	"math"
	"slices"
	"time"
)

// Reserve keeps the last entries of the table for the allowlist. Where the management lane must stay tracked, because
// a rule of the host's lets in only what conntrack calls new, an operator's new connection needs an entry: in a full
// table there is none for anybody.
//
// It takes from nobody what an unguarded host would give: others share the rest of the table, and of what expires.
type Reserve struct {
	Engaged bool
	Rate    int // so many flows a second may others open; 0: none
}

// One entry of reservedPart is kept, from when hardly more than that is left, or would be soon. Others may open flows
// at a rate at which what is left for them lasts for reserveTime: some ticks, for a tick may be late on a host under
// attack.
const (
	reservedPart = 64
	reserveTime  = 250 * time.Millisecond
)

// filling measures how fast the table fills: by what comes less what expires and what ctguard takes out, which the
// pressure looks away from. Where evictions and purges keep up with a flood there is nothing to keep.
type filling struct {
	count, before int // entries when the last spans began
	at, beforeAt  time.Time
}

// fillingSpan is the span of it: longer than the time from one purge to the next.
const fillingSpan = 500 * time.Millisecond

// within returns how many entries come in so much time, as it went over the last span or two.
func (f *filling) within(o Observation, span time.Duration) float64 {
	if o.Time.Sub(f.at) >= fillingSpan {
		f.count, f.at, f.before, f.beforeAt = o.Count, o.Time, f.count, f.at
	}
	if f.beforeAt.IsZero() {
		return 0
	}
	past := max(o.Time.Sub(f.beforeAt), fillingSpan)
	return float64(o.Count-f.before) * span.Seconds() / past.Seconds()
}

// reserve returns what is to be kept now: nothing at level 0.
func (n *notrack) reserve(s situation, level int) Reserve {
	soon := n.filling.within(s.Observation, 2*s.cfg.Pressed) // two ticks from now
	if level == 0 || n.laneRefusal(s) == "" {
		return Reserve{}
	}
	kept := s.Capacity / reservedPart
	left := float64(s.Capacity - kept - s.Count)
	if left-soon > float64(kept) {
		return Reserve{}
	}
	rate := left / reserveTime.Seconds()
	if rate < 1 {
		return Reserve{Engaged: true}
	}
	// The power of two below: the rule must not change with every tick.
	return Reserve{Engaged: true, Rate: int(math.Exp2(math.Floor(math.Log2(rate))))}
}

// laneRefusal says which management port must stay tracked, and why; it is empty if none must.
func (n *notrack) laneRefusal(s situation) string {
	refused := func(one Selector) bool { return n.refusal(one, s.Observation) != "" }
	if i := slices.IndexFunc(s.Lane, refused); i >= 0 {
		return fmt.Sprintf("%s must stay tracked: %s", s.Lane[i], n.refusal(s.Lane[i], s.Observation))
	}
	return ""
}
