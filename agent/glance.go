package agent

import (
	"time"

	"ctguard/policy"
)

// On a calm day a whole tick four times a second finds what the one before found. Between two of them, a second apart,
// the loop only glances at how many entries there are, and may be: nothing else can begin that is not seen there, and
// reading two numbers costs a tenth of a tick.
const glanceFor = time.Second

// stirring is the part of the capacity, one entry in so many, by which the table may have changed since the last whole
// tick without making the next one whole: a flood that stays below it would need minutes to fill the table.
const stirring = 500

// glance reports whether a glance is enough for this turn. It is not while little is known of an ordinary day: what is
// learnt a second late is perhaps learnt too late.
func (l *loop) glance(now time.Time) bool {
	if l.learnt < eagerScans || l.news || !l.isCalm() || l.decision.Growing || now.Sub(l.last.Time) >= glanceFor {
		return false
	}
	count, err := l.sensors.table.Count()
	if err != nil || stirs(l.last, count) {
		return false
	}
	capacity, err := l.sensors.capacity(l.config.Capacity)
	return err == nil && capacity == l.last.Capacity
}

// stirs reports whether a table has changed since an observation.
func stirs(o policy.Observation, count int) bool {
	change := count - o.Count
	return max(change, -change) > o.Capacity/stirring
}

// stirs reports whether what a tick has found began after glances that found nothing: then its rate is too low, as if
// it had begun a second ago, and the next tick comes soon.
func (l *loop) stirs(before policy.Observation) bool {
	return l.last.Time.Sub(before.Time) > 2*l.config.Policy.Calm && !before.Time.IsZero() && stirs(before, l.last.Count)
}
