package policy

import (
	"fmt"
	"time"
)

// steady tells a host that is always fuller than the lowest mark, and so has no calm to learn an ordinary day from,
// from one that somebody fills: its table does not grow for an hour.
type steady struct {
	since time.Time // zero before the first look
	base  int       // the fewest entries since then
}

// How steady a table is from which an ordinary day is learnt at any level.
//
// A flood that grows by more than steadyWaver an hour begins the hour anew each time, so it teaches nothing. One that
// grows slower needs half a day from a half-full table to one that is full, and what it has taught by then fitted
// beside everybody else: nothing is learnt above steadyBelow. And only who never has calm learns so: what was learnt
// in calm counts for a week, however steady a flood stays.
const (
	steadyFor   = time.Hour
	steadyWaver = 5  // percent of the capacity: of the least in this time, so much more is no growth
	steadyBelow = 85 // percent of the capacity: fuller than that nothing is ordinary
)

// watch takes a look at the table. What ctguard takes from sources says that the moment is not ordinary.
func (y *steady) watch(s situation) {
	p := s.before
	troubled := s.growing() || s.drops > 0 || s.fill >= steadyBelow || s.halfOpen >= halfOpenLeave ||
		len(p.Limits)+len(p.Caps)+len(p.Budgets)+len(p.Purges) > 0 || p.Reserve.Engaged
	if y.since.IsZero() || troubled || s.Count > y.base+steadyWaver*s.Capacity/100 || s.Time.Before(y.since) {
		y.since, y.base = s.Time, s.Count
	}
	y.base = min(y.base, s.Count)
}

// on reports whether the table has been steady for long enough.
func (y *steady) on(now time.Time) bool { return !y.since.IsZero() && now.Sub(y.since) >= steadyFor }

// learns says whether the moment is ordinary: calm, or at least steady on a host without calm.
func (m *Machine) learns(s situation) (ordinary bool) {
	m.steady.watch(s)
	if m.ladder.level == 0 && !s.growing() && s.pressure < m.ladder.lowestEnter() {
		m.ordinary.Steady = false
		return true
	}
	if !m.steady.on(s.Time) || m.ordinary.Fresh(s.Time) && !m.ordinary.Steady {
		return false
	}
	m.ordinary.Steady = true
	return s.Census == nil || s.Census.Seen >= s.Census.Total/2 // a small sample makes a crowd of a few
}

// DayStatus returns what is known of an ordinary day, and what it waits for where nothing is.
func (m *Machine) DayStatus() DayStatus {
	status := m.ordinary.Status()
	if status.Known || m.last.pressure < m.ladder.lowestEnter() || m.steady.since.IsZero() {
		return status // what is over, or soon will be, takes only time
	}
	status.Waits = fmt.Sprintf("the table is fuller than the lowest mark (%g %%), so it has to be steady for %s first, "+
		"and is for %s; a larger nf_conntrack_max (ctguard size) or higher marks let it be learnt in calm",
		m.ladder.lowestEnter(), steadyFor, m.last.Time.Sub(m.steady.since).Round(time.Second))
	return status
}
