package agent

import (
	"testing"
	"time"

	"ctguard/policy"
)

// Between two whole ticks of a calm day a glance is enough, unless the table or its size changes, or something else is
// new; in trouble it never is.
func TestGlance(t *testing.T) {
	now := time.Unix(1000, 0)
	calm := policy.Observation{Time: now, Count: 1000, Capacity: 65536}
	for _, c := range []struct {
		name   string
		change func(*loop, *kernel)
		after  time.Duration
		want   bool
	}{
		{"calm", func(*loop, *kernel) {}, glanceFor / 2, true},
		{"a second later", func(*loop, *kernel) {}, glanceFor, false},
		{"a little more", func(_ *loop, k *kernel) { k.count += 100 }, glanceFor / 2, true},
		{"more", func(_ *loop, k *kernel) { k.count += 200 }, glanceFor / 2, false},
		{"less", func(_ *loop, k *kernel) { k.count -= 200 }, glanceFor / 2, false},
		{"the first minute", func(l *loop, _ *kernel) { l.learnt = eagerScans - 1 }, glanceFor / 2, false},
		{"news", func(l *loop, _ *kernel) { l.news = true }, glanceFor / 2, false},
		{"level 1", func(l *loop, _ *kernel) { l.decision.Posture.Level = 1 }, glanceFor / 2, false},
		{"pressure", func(l *loop, _ *kernel) { l.decision.Pressure = calmBelow }, glanceFor / 2, false},
		{"a smaller table", func(_ *loop, k *kernel) { k.max = 64 }, glanceFor / 2, false},
		{"growth", func(l *loop, _ *kernel) { l.decision.Growing = true }, glanceFor / 2, false},
	} {
		k := &kernel{}
		k.count, k.max = calm.Count, calm.Capacity
		l := &loop{last: calm, sensors: sensors{table: k}}
		l.learnt = eagerScans
		c.change(l, k)
		if got := l.glance(now.Add(c.after)); got != c.want {
			t.Errorf("%s: a glance is enough: %v, want %v", c.name, got, c.want)
		}
	}
}
