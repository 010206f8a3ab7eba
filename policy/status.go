package policy

import (
	"fmt"
	"time"
)

// StepStatus is how one step stands, for status and metrics.
type StepStatus struct {
	Name    StepName   `json:"name"`
	Engaged bool       `json:"engaged"`
	Since   *time.Time `json:"since"`   // when it was engaged; null while it is not
	Reason  string     `json:"reason"`  // what it is doing, or what it waits for
	Skipped string     `json:"skipped"` // why it does nothing on this host; empty if it can
	Work    uint64     `json:"work"`    // packets or entries it handled since ctguard started
	Enter   float64    `json:"enter_percent"`
	Leave   float64    `json:"leave_percent"`
	Settle  string     `json:"settle"` // its present settle time, doublings included
}

// Steps returns how each step of the ladder stands after the last tick.
func (m *Machine) Steps() []StepStatus {
	last := m.situation(m.last.Observation, m.last.reading)
	list := make([]StepStatus, len(m.ladder.rungs))
	for i, r := range m.ladder.rungs {
		w := m.worker(r.Name)
		s := m.tell(w, last)
		list[i] = StepStatus{Name: r.Name, Engaged: s.engaged, Enter: r.Enter, Leave: r.Leave, Settle: r.settle().String(),
			Work: w.step.done(s.Observation), Skipped: w.skipped(s), Reason: m.stepReason(w, r, s)}
		if s.engaged {
			list[i].Since = &r.engaged
		}
	}
	return list
}

// stepReason says what a step does now, or what it waits for.
func (m *Machine) stepReason(w *worker, r rung, s situation) string {
	if !s.engaged {
		return fmt.Sprintf("enters at %g %% of pressure, now %.0f %%", r.Enter, m.decision.Pressure)
	}
	work := fmt.Sprintf("at work: %.0f a second", w.pace.Rate)
	if w.pace.Rate < 0.5 {
		work = "nothing to do at the moment"
	}
	switch status := w.step.status(s); {
	case r.quiet.IsZero() && status != "":
		return work + "; " + status
	case r.quiet.IsZero():
		return work
	case status != "":
		return status
	case r.belowLeave.IsZero():
		return fmt.Sprintf("leaves below %g %% of pressure, now %.0f %%", r.Leave, m.decision.Pressure)
	}
	return fmt.Sprintf("quiet; leaves after %s below %g %%", r.settle(), r.Leave)
}
