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

// One entry of reservedPart is kept. Others may open flows at a rate at which what is left for them lasts for
// reserveTime: some ticks, for a tick may be late on a host under attack.
const (
	reservedPart = 64
	reserveTime  = 250 * time.Millisecond
)

// reserve returns what is to be kept now: nothing at level 0, and nothing before the table is about to be full.
func (n *notrack) reserve(s situation, level int) Reserve {
	if level == 0 || s.pressure < laneFill && !n.lane || n.laneRefusal(s) == "" {
		return Reserve{}
	}
	left := s.Capacity - s.Capacity/reservedPart - s.Count
	rate := float64(left) / reserveTime.Seconds()
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
