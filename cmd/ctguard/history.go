package main

import (
	"context"
	"fmt"
	"time"

	"ctguard/agent/control"
)

// highest is the most that a history has of everything.
type highest struct {
	control.Point               // its time is that of the highest fill
	since         time.Duration // how far back it reaches
	refused       time.Duration // how long ago new flows were refused last; meaningless where none were
}

// highest asks the daemon for the most that it has seen; ok is false where it does not tell.
func (p *program) highest(ctx context.Context) (h highest, ok bool) {
	var points []control.Point
	if p.call(ctx, "history", nil, &points) != nil || len(points) == 0 {
		return h, false
	}
	return highestOf(points), true
}

// past says the most that the daemon has seen in a line; empty where it does not tell.
func (p *program) past(ctx context.Context) string {
	h, ok := p.highest(ctx)
	if !ok {
		return ""
	}
	return h.String()
}

// highestOf is the most that points have; drops are summed.
func highestOf(points []control.Point) highest {
	last := points[len(points)-1]
	h := highest{Point: points[0], since: last.Time.Sub(points[0].Time)}
	for _, p := range points[1:] {
		if p.Fill > h.Fill {
			h.Fill, h.Time = p.Fill, p.Time
		}
		h.Pressure, h.Level = max(h.Pressure, p.Pressure), max(h.Level, p.Level)
		h.Count, h.Drops = max(h.Count, p.Count), h.Drops+p.Drops
	}
	for _, p := range points {
		if p.Drops > 0 {
			end := p.Time.Add(time.Duration(p.Seconds * float64(time.Second)))
			h.refused = max(0, last.Time.Sub(end))
		}
	}
	return h
}

// String says it in a line.
func (h highest) String() string {
	refused := "no new flow refused"
	switch {
	case h.Drops > 0 && h.refused < time.Second:
		refused = fmt.Sprintf("%d new flows refused, the last one just now", h.Drops)
	case h.Drops > 0:
		refused = fmt.Sprintf("%d new flows refused, the last one %s ago", h.Drops, short(h.refused))
	}
	return fmt.Sprintf("the last %s: fill up to %.1f %% (%s), level up to %d, %s", short(h.since),
		h.Fill, h.Time.Format(time.TimeOnly), h.Level, refused)
}
