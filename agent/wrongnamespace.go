package agent

import (
	"fmt"
	"time"
)

// An agent whose count has been 0 for emptyAfter, from its start, looks for entries of other namespaces each
// lookAgain, until it finds some: it may be in the wrong network namespace.
const (
	emptyAfter = 5 * time.Minute
	lookAgain  = time.Minute
)

// wrongNamespace watches for entries that other namespaces have while this one has none.
type wrongNamespace struct {
	others func() int // how many entries other namespaces have
	met    bool       // there has been an entry here: this is a right place
	since  time.Time  // when the first count was taken
	looked time.Time
}

// lookAround warns of a count that stays 0 while others move. The first entry answers the question for
// good: a host that is idle at times is no fault.
func (l *loop) lookAround(now time.Time, count int) {
	w := &l.namespace
	switch {
	case w.met:
		return
	case count > 0:
		w.met = true
		l.trouble("namespace", nil)
		return
	case w.since.IsZero():
		w.since = now
	}
	if now.Sub(w.since) < emptyAfter || now.Sub(w.looked) < lookAgain || l.troubles["namespace"] != "" {
		return
	}
	w.looked = now
	if n := w.others(); n > 0 {
		l.trouble("namespace", fmt.Errorf("count is 0 here while %d entries exist elsewhere: "+
			"is this the right network namespace? (ctguard run --netns NAME guards another)", n))
	}
}
