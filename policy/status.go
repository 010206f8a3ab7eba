package policy

import (
	"fmt"
	"slices"
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
	Hold    string     `json:"hold"` // its present hold, doublings included
}

// SelectorStatus is how one candidate for notrack stands.
type SelectorStatus struct {
	Selector string `json:"selector"`
	Stage    string `json:"stage"`   // "tracked", "watched", "trial" or "freed"
	Refused  string `json:"refused"` // why it must stay tracked; empty if nothing speaks against it
}

// Steps returns how each step of the ladder stands after the last tick.
func (m *Machine) Steps() []StepStatus {
	list := make([]StepStatus, len(m.ladder.rungs))
	for i, r := range m.ladder.rungs {
		s := StepStatus{Name: r.Name, Enter: r.Enter, Leave: r.Leave, Hold: (r.Hold * time.Duration(r.factor)).String(),
			Work: m.done(r.Name, m.last), Skipped: m.skipped(r.Name, m.last)}
		if s.Engaged = i < m.ladder.level; s.Engaged {
			engaged := r.engaged
			s.Since = &engaged
		}
		s.Reason = m.stepReason(r, s.Engaged)
		list[i] = s
	}
	return list
}

// stepReason says what a step does now, or what it waits for.
func (m *Machine) stepReason(r rung, engaged bool) string {
	p := m.decision.Posture
	switch {
	case !engaged:
		return fmt.Sprintf("enters at %g %% of pressure, now %.0f %%", r.Enter, m.decision.Pressure)
	case r.quiet.IsZero():
		return fmt.Sprintf("at work: %.0f a second", m.work[r.Name].Rate)
	case r.Name == NotrackStep:
		n := 0
		for _, s := range p.Notrack {
			if s.Stage != Watched {
				n++
			}
		}
		return fmt.Sprintf("%d of %d selectors untracked", n, len(m.last.Services))
	case r.Name == Synproxy && len(p.Synproxy) == 0:
		return fmt.Sprintf("waits for handshakes under way to hold %d %% of the capacity, now %.0f %%", halfOpenEnter, m.halfOpen)
	case r.Name == Synproxy:
		return fmt.Sprintf("in front of %d ports", len(p.Synproxy))
	case r.Name == Evict:
		return fmt.Sprintf("%d sources held back", len(p.Limits))
	case r.Name == Admit:
		return fmt.Sprintf("%d classes on a budget", len(p.Budgets))
	case r.belowLeave.IsZero():
		return fmt.Sprintf("leaves below %g %% of pressure, now %.0f %%", r.Leave, m.decision.Pressure)
	}
	return fmt.Sprintf("quiet; leaves after %s below %g %%", r.Hold*time.Duration(r.factor), r.Leave)
}

// Selectors returns how each candidate for notrack stands after the last tick.
func (m *Machine) Selectors() []SelectorStatus {
	list := make([]SelectorStatus, 0, len(m.last.Services)+len(m.last.Lane))
	for _, s := range slices.Concat(m.last.Services, m.last.Lane) {
		status := SelectorStatus{Selector: s.String(), Stage: "tracked", Refused: m.untracker.refusal(s, m.last)}
		if t := m.untracker.selectors[s]; t != nil {
			status.Stage = t.stage.String()
		}
		list = append(list, status)
	}
	return list
}
