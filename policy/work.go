package policy

import (
	"fmt"
	"time"
)

// worker is a step and the record of its work.
type worker struct {
	listing
	step    step
	pace    pace     // of what the step has done
	started *outcome // when it was engaged, until it has said what it brought
}

// newWorkers returns every step at rest, in the order of the ladder.
func newWorkers() []*worker {
	workers := make([]*worker, len(catalogue))
	for i, l := range catalogue {
		workers[i] = &worker{listing: l, step: l.build()}
	}
	return workers
}

// skipped says why a step can do nothing on this host; it is empty when the step can do its work.
func (w *worker) skipped(s situation) string {
	if reason := s.Unsupported[w.name]; reason != "" {
		return reason
	}
	return w.step.skipped(s)
}

// quietRate is the work per second, in packets or entries, that every step may still do and count as
// quiet: a few stray clients.
const quietRate = 10

// roomFor reports whether the table has room for more entries below the leave mark of the step that is asked.
func (s situation) roomFor(more float64) bool {
	return 100*(float64(s.Count)+more) < s.marks.Leave*float64(s.Capacity)
}

// outcomeAfter is when a step says what it brought.
const outcomeAfter = 5 * time.Second

// outcome is what things were like when a step was engaged: what came of it is the difference.
type outcome struct {
	at      time.Time
	fill    float64 // percent
	drops   uint64  // flows the kernel had refused
	done    uint64  // the step's work so far
	evicted uint64  // entries ctguard had deleted
	retired uint64  // of them, finished ones
}

// begin notes what things are like as the step is engaged.
func (w *worker) begin(s situation) {
	w.started = &outcome{s.Time, s.fill, s.Kernel.refused(), w.step.done(s.Observation), s.Work.Evicted, s.Work.Retired}
}

// report says what each step brought, a little after it was engaged.
func (m *Machine) report(s situation) []Event {
	var events []Event
	for i, r := range m.ladder.rungs[:m.ladder.level] {
		w := m.worker(r.Name)
		if w.started == nil || s.Time.Sub(w.started.at) < outcomeAfter {
			continue
		}
		was := *w.started
		w.started = nil
		s := m.tell(w, s)
		if w.skipped(s) != "" {
			continue
		}
		text := "brought nothing"
		if done := since(w.step.done(s.Observation), was.done); done > 0 {
			text = w.step.brought(s, done, was)
		} else if i == m.ladder.level-1 {
			m.ladder.ineffective = true
		}
		events = append(events, Event{Kind: StepEvent, Step: w.name, Reason: fmt.Sprintf(
			"%s in %s: fill %.0f %% to %.0f %%, %d flows refused by the kernel meanwhile",
			text, s.Time.Sub(was.at).Round(time.Second), was.fill, s.fill, since(s.Kernel.refused(), was.drops))})
	}
	return events
}
