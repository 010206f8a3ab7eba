package agent

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"ctguard/policy"
)

// A count that stays 0 while there are entries elsewhere is warned about once, until it moves.
func TestWrongNamespace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKernel(t)
		a := newAgent(k, parse(t, ""), false)
		l := a.loop
		others := 0
		l.namespace.others = func() int { return others }
		wait := func(d time.Duration) {
			for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(10 * time.Second) {
				l.tick()
			}
		}
		wait(2 * emptyAfter)
		others = 1234
		wait(2 * lookAgain)
		others = 2000
		wait(2 * emptyAfter)
		told := l.reasons(policy.DegradedEvent)
		if len(told) != 1 ||
			!strings.HasPrefix(told[0], "namespace: count is 0 here while 1234 entries exist elsewhere") ||
			!strings.Contains(told[0], "--netns") {
			t.Fatalf("told %q", told)
		}
		k.count = 1
		l.tick()
		if s := l.board.Status(); len(s.Degraded) > 0 {
			t.Errorf("still degraded: %v", s.Degraded)
		}
		k.count = 0
		wait(2 * emptyAfter)
		if told := l.reasons(policy.DegradedEvent); len(told) != 2 {
			t.Errorf("told %q", told)
		}
	})
}

// Before its time is up nothing is said, whatever is elsewhere.
func TestWrongNamespaceTakesTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAgent(newKernel(t), parse(t, ""), false)
		l := a.loop
		l.namespace.others = func() int { return 1000 }
		for start := time.Now(); time.Since(start) < emptyAfter; time.Sleep(time.Second) {
			l.tick()
		}
		if told := l.reasons(policy.DegradedEvent); len(told) > 0 {
			t.Errorf("told %q", told)
		}
	})
}
