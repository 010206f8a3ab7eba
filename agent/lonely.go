package agent

import (
	"fmt"
	"time"
)

// An agent whose count has been 0 for lonelyAfter, from its start, looks for entries elsewhere each
// lookElsewhere, until it finds some: it may be in the wrong network namespace.
const (
	lonelyAfter   = 5 * time.Minute
	lookElsewhere = time.Minute
)

// lonely watches for entries that are elsewhere.
type lonely struct {
	elsewhere func() int // how many entries other namespaces have
	met       bool       // there has been an entry here: this is a right place
	since     time.Time  // when the first count was taken
	looked    time.Time
}

// lookAround warns of a count that stays 0 while others move. The first entry answers the question for
// good: a host that is idle at times is no fault.
func (a *Agent) lookAround(now time.Time, count int) {
	l := &a.lonely
	switch {
	case l.met:
		return
	case count > 0:
		l.met = true
		a.trouble("namespace", nil)
		return
	case l.since.IsZero():
		l.since = now
	}
	if now.Sub(l.since) < lonelyAfter || now.Sub(l.looked) < lookElsewhere || a.troubles["namespace"] != "" {
		return
	}
	l.looked = now
	if n := l.elsewhere(); n > 0 {
		a.trouble("namespace", fmt.Errorf("count is 0 here while %d entries exist elsewhere: is this the right network namespace? "+
			"(ctguard run --netns NAME guards another)", n))
	}
}
