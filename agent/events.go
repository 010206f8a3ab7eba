package agent

import (
	"context"
	"log/slog"
	"time"

	"ctguard/policy"
)

// historySize is how many events are kept for status and events.
const historySize = 1024

// history is the last events, numbered so that a reader can go on where it stopped.
type history struct {
	list []NumberedEvent
	next uint64
}

// NumberedEvent is an event with its place in the agent's life.
type NumberedEvent struct {
	Number uint64 `json:"number"`
	policy.Event
}

// add appends an event and forgets the oldest beyond the size.
func (h *history) add(e policy.Event) {
	h.next++
	if len(h.list) == historySize {
		h.list = append(h.list[:0], h.list[1:]...)
	}
	h.list = append(h.list, NumberedEvent{h.next, e})
}

// since returns the events after a number, oldest first, at most the last n of them.
func (h *history) since(number uint64, n int) []NumberedEvent {
	from := len(h.list)
	for from > 0 && h.list[from-1].Number > number {
		from--
	}
	from = max(from, len(h.list)-n)
	return append([]NumberedEvent{}, h.list[from:]...)
}

// emit notes an event, logs it and counts it. An event that brings no numbers gets those of the last
// tick.
func (a *Agent) emit(e policy.Event) {
	if e.Time.IsZero() {
		e.Time = time.Now()
	}
	if e.Fill == 0 {
		d := a.decision
		e.Fill, e.Pressure, e.Rate, e.SecondsToFull = d.Fill, d.Pressure, d.Rate, d.SecondsToFull
	}
	e.DryRun = a.dryRun
	a.events.add(e)
	close(a.changed)
	a.changed = make(chan struct{})
	if a.metrics != nil {
		a.metrics.events.WithLabelValues(string(e.Kind)).Inc()
	}
	level := slog.LevelInfo
	if e.Kind == policy.DegradedEvent {
		level = slog.LevelWarn
	}
	a.log.LogAttrs(context.Background(), level, string(e.Kind)+": "+e.Reason, logAttrs(e)...)
}

// logAttrs returns an event's fields as they stand in its JSON form.
func logAttrs(e policy.Event) []slog.Attr {
	attrs := []slog.Attr{slog.String("event", string(e.Kind)), slog.String("reason", e.Reason)}
	if e.Step != "" {
		attrs = append(attrs, slog.String("step", string(e.Step)))
	}
	if e.From != nil && e.To != nil {
		attrs = append(attrs, slog.Int("from", *e.From), slog.Int("to", *e.To))
	}
	if e.Prefix.IsValid() {
		attrs = append(attrs, slog.String("prefix", e.Prefix.String()))
	}
	if e.Entries > 0 {
		attrs = append(attrs, slog.Int("entries", e.Entries))
	}
	attrs = append(attrs, slog.Float64("fill_percent", round(e.Fill)), slog.Float64("pressure_percent", round(e.Pressure)),
		slog.Float64("rate_per_second", round(e.Rate)))
	if e.SecondsToFull != nil {
		attrs = append(attrs, slog.Float64("seconds_to_full", round(*e.SecondsToFull)))
	}
	if e.DryRun {
		attrs = append(attrs, slog.Bool("dry_run", true))
	}
	return attrs
}

// round keeps one decimal: what follows is noise.
func round(x float64) float64 { return float64(int64(x*10+0.5)) / 10 }

// trouble tells of a fault of one part of the loop when it begins, changes and ends; not at each
// tick while it lasts.
func (a *Agent) trouble(part string, err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	if a.troubles[part] == text {
		return
	}
	if a.troubles[part] = text; text == "" {
		delete(a.troubles, part)
		text = "works again"
	}
	a.emit(policy.Event{Kind: policy.DegradedEvent, Reason: part + ": " + text})
}
