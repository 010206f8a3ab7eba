package agent

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"ctguard/policy"
)

// A count that stays 0 while there are entries elsewhere is warned about once, until it moves.
func TestLonely(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKernel(t)
		a := newAgent(k, parse(t, ""), false)
		elsewhere := 0
		a.lonely.elsewhere = func() int { return elsewhere }
		wait := func(d time.Duration) {
			for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(10 * time.Second) {
				a.tick()
			}
		}
		wait(2 * lonelyAfter)
		elsewhere = 1234
		wait(2 * lookElsewhere)
		elsewhere = 2000
		wait(2 * lonelyAfter)
		told := a.reasons(policy.DegradedEvent)
		if len(told) != 1 || !strings.HasPrefix(told[0], "namespace: count is 0 here while 1234 entries exist elsewhere") || !strings.Contains(told[0], "--netns") {
			t.Fatalf("told %q", told)
		}
		k.count = 1
		a.tick()
		if s := a.status.Load(); len(s.Degraded) > 0 {
			t.Errorf("still degraded: %v", s.Degraded)
		}
		k.count = 0
		wait(2 * lonelyAfter)
		if told := a.reasons(policy.DegradedEvent); len(told) != 2 {
			t.Errorf("told %q", told)
		}
	})
}

// Before its time is up nothing is said, whatever is elsewhere.
func TestNotLonelyYet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAgent(newKernel(t), parse(t, ""), false)
		a.lonely.elsewhere = func() int { return 1000 }
		for start := time.Now(); time.Since(start) < lonelyAfter; time.Sleep(time.Second) {
			a.tick()
		}
		if told := a.reasons(policy.DegradedEvent); len(told) > 0 {
			t.Errorf("told %q", told)
		}
	})
}
