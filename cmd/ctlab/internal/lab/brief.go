package lab

import "time"

const (
	// seen is how much of a full table is to be seen: from then on nothing changes by itself.
	seen = 2 * time.Second
	// worked is the least in which an agent's work is to be seen.
	worked = 6 * time.Second
	// learns is how long an agent must have watched a calm host to know who is there.
	learns = 4 * time.Second
)

// Brief is a scenario with phases that last only as long as there is something to see in them,
// where they are not given: for comparing everything with everything. Without an agent that is
// until the table has been full for a while. A guard or attack that does not exist is left for Run
// to refuse.
func Brief(sc Scenario) Scenario {
	a, ok := attackNamed(sc.Attack)
	g, exists := guardNamed(sc.Guard)
	if !ok || !exists {
		return sc
	}
	full := sc.withDefaults()
	rate := a.rate
	if sc.Rate > 0 {
		rate = sc.Rate
	}
	fills := time.Duration(float64(full.Capacity-full.Background) / float64(rate) * float64(time.Second))
	attack, calm, after := fills+seen, 500*time.Millisecond, time.Second
	if g.agent {
		attack, calm, after = max(attack, worked), learns, 2*time.Second
	}
	def(&sc.AttackFor, a.briefly)
	def(&sc.AttackFor, min(full.AttackFor, attack))
	def(&sc.Calm, calm)
	def(&sc.After, after)
	return sc
}

// Length is how long the phases of a scenario take; the time to set it up comes on top.
func (s Scenario) Length() time.Duration {
	s = s.withDefaults()
	return s.Calm + s.AttackFor + s.After
}
