package agent

import (
	"context"
	"log/slog"
	"time"

	"ctguard/agent/control"
	"ctguard/agent/notify"
	"ctguard/policy"
)

// teller is how the loop tells what happens: in the log, on the board for clients, and to whom the operator wants told.
type teller struct {
	log      *slog.Logger
	board    *control.Board
	notifier *notify.Notifier  // nil where nobody is to be told
	troubles map[string]string // what does not work now, by part of the loop
}

// tell logs and publishes an event.
func (t *teller) tell(e policy.Event) {
	t.board.Tell(e)
	t.notifier.Tell(e)
	level := slog.LevelInfo
	if e.Kind == policy.DegradedEvent {
		level = slog.LevelWarn
	}
	t.log.LogAttrs(context.Background(), level, string(e.Kind)+": "+e.Reason, logAttrs(e)...)
}

// emit notes an event, logs it and counts it. An event that brings no numbers gets those of the last
// tick.
func (l *loop) emit(e policy.Event) {
	if e.Time.IsZero() {
		e.Time = time.Now()
	}
	if e.Fill == 0 {
		d := l.decision
		e.Fill, e.Pressure, e.Rate, e.SecondsToFull = d.Fill, d.Pressure, d.Rate, d.SecondsToFull
	}
	e.DryRun = l.dryRun
	l.tell(e)
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
		attrs = append(attrs, slog.String("prefix", e.Source().String()))
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
func (l *loop) trouble(part string, err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	if l.troubles[part] == text {
		return
	}
	if l.troubles[part] = text; text == "" {
		delete(l.troubles, part)
		text = "works again"
	}
	l.emit(policy.Event{Kind: policy.DegradedEvent, Reason: part + ": " + text})
}
