package policy

import (
	"fmt"
	"slices"
)

// Notrack is the step that leaves safe traffic untracked, each selector on trial first.
const Notrack StepName = "notrack"

type notrack struct {
	trials
	lane    bool // the management lane is open
	filling filling
}

// The fill in percent at which the management lane opens, whatever the level, and below which it closes:
// while it is open, TCP can't be held to what conntrack knows.
const (
	laneFill  = 90
	laneLeave = 75
)

func (n *notrack) observe(s situation) { n.publish(s) }

// publish says what other steps must know: which services may go untracked now.
func (n *notrack) publish(s situation) {
	s.shared.untrackable = nil
	if !s.listed() {
		return
	}
	for _, service := range s.Services {
		if n.refusal(service, s.Observation) == "" {
			s.shared.untrackable = append(s.shared.untrackable, service)
		}
	}
}

func (n *notrack) skipped(s situation) string {
	if len(s.Services) == 0 {
		return "no service of this host was found or listed"
	}
	if !slices.ContainsFunc(s.Services, func(service Selector) bool { return n.refusal(service, s.Observation) == "" }) {
		return fmt.Sprintf("every selector is refused; %s: %s", s.Services[0], n.refusal(s.Services[0], s.Observation))
	}
	return ""
}

// want moves the trials on, those of the management lane too: it opens whether or not the step is engaged.
func (n *notrack) want(s situation, p *Posture) []Event {
	wanted, events := n.update(s.Observation, *s.cfg, n.candidates(s, p.Level), func(one Selector) bool {
		return s.engaged && slices.Contains(s.Services, one) || n.lane && slices.Contains(s.Lane, one)
	})
	p.Notrack, p.Adopt = wanted, n.adopt()
	p.Reserve = n.reserve(s, p.Level)
	if p.Reserve.Engaged && !s.before.Reserve.Engaged {
		events = append(events, Event{Kind: StepEvent, Step: Notrack,
			Reason: "the last entries of the table are kept for the allowlist: " + n.laneRefusal(s)})
	}
	p.Uncounted = !n.counts(s.Observation, *s.cfg)
	n.publish(s)
	connects := slices.ContainsFunc(wanted, func(w Untracked) bool { return w.Selector.connects() })
	s.shared.adopting = n.adopting()
	s.shared.loose.needEntries = len(n.needEntries) > 0
	s.shared.loose.untracked = n.untracked() || s.engaged && connects
	s.shared.asks.fast = s.shared.asks.fast || n.moving(s.Time, *s.cfg)
	return events
}

// candidates returns what may go untracked now: nothing at level 0; above it the services, if
// the step is on the ladder, and the management lane while the table is about to be full.
func (n *notrack) candidates(s situation, level int) []Selector {
	if level == 0 {
		n.lane = false
		return nil
	}
	n.lane = s.fill >= laneFill || n.lane && s.fill >= laneLeave
	var all []Selector
	if s.listed() {
		all = slices.Clone(s.Services)
	}
	if !n.lane {
		return all
	}
	for _, one := range s.Lane {
		// Where the whole service may go untracked the lane needs nothing of its own.
		whole := Selector{Protocol: one.Protocol, Port: one.Port}
		if !slices.Contains(all, one) && (!slices.Contains(all, whole) || n.refusal(whole, s.Observation) != "") {
			all = append(all, one)
		}
	}
	return all
}

func (n *notrack) done(o Observation) uint64 { return n.opened(o) }

// newFlowLife is how many seconds a new flow stays in the table at the kernel's defaults: the
// longer of nf_conntrack_udp_timeout_stream and nf_conntrack_tcp_timeout_time_wait, both 120.
const newFlowLife = 120

// quiet reports whether the table has room for what the step keeps out of it: the connections
// that live untracked, which become entries again, and new ones, unless they are no more than on an
// ordinary day.
func (*notrack) quiet(s situation, rate float64) bool {
	more := float64(s.Sockets)
	if rate > 5*quietRate+2*s.ordinary.Opens {
		more += rate * newFlowLife
	}
	return s.roomFor(more)
}

func (*notrack) brought(_ situation, done uint64, _ outcome) string {
	return fmt.Sprintf("kept %d new flows out of the table", done)
}

func (*notrack) status(s situation) string {
	n := 0
	for _, w := range s.before.Notrack {
		if w.Stage != Watched {
			n++
		}
	}
	text := fmt.Sprintf("%d of %d selectors untracked", n, len(s.Services))
	if s.before.Reserve.Engaged {
		text += fmt.Sprintf("; the last entries of the table are kept for the allowlist, %d new flows of others were refused",
			s.Work.ReserveDropped)
	}
	return text
}

// SelectorStatus is how one candidate for notrack stands.
type SelectorStatus struct {
	Selector string `json:"selector"`
	Stage    string `json:"stage"`   // "tracked", "watched", "trial", "freed" or "leaving"
	Refused  string `json:"refused"` // why it must stay tracked; empty if nothing speaks against it
	Cookies  string `json:"cookies"` // of forwarded TCP services: "answered", "ready", or why none may stand before it
}

// Selectors returns how each candidate for notrack stands after the last tick.
func (m *Machine) Selectors() []SelectorStatus {
	n := m.worker(Notrack).step.(*notrack)
	list := make([]SelectorStatus, 0, len(m.last.Services)+len(m.last.Lane))
	for _, s := range slices.Concat(m.last.Services, m.last.Lane) {
		status := SelectorStatus{Selector: s.String(), Stage: "tracked", Refused: n.refusal(s, m.last.Observation)}
		if t := n.selectors[s]; t != nil {
			status.Stage = t.stage.String()
		}
		for _, w := range m.steps {
			if c, ok := w.step.(cookies); ok {
				status.Cookies = c.cookies(s, m.last)
			}
		}
		list = append(list, status)
	}
	return list
}
