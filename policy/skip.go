package policy

import (
	"fmt"
	"slices"
)

// skipped says why a step does nothing on this host; it is empty when the step can do its work.
func (m *Machine) skipped(name StepName, o Observation) string {
	if reason := o.Unfit[name]; reason != "" {
		return reason
	}
	switch name {
	case Grow:
		return growSkipped(o)
	case DropInvalid:
		return m.invalidSkipped(o)
	case NotrackStep:
		return m.notrackSkipped(o)
	case Synproxy:
		return m.synproxySkipped(o)
	case ClosedPorts, Tighten, Evict, Admit:
	}
	return ""
}

func (m *Machine) invalidSkipped(o Observation) string {
	if o.Admin[tcpLiberal] != 0 {
		return "tcp_be_liberal is on: what is out of window is not invalid here"
	}
	if m.calm.invalid > m.cfg.CalmInvalid {
		return fmt.Sprintf("%.0f invalid packets a second are part of this host's calm traffic (asymmetric routes?)", m.calm.invalid)
	}
	return ""
}

func (m *Machine) notrackSkipped(o Observation) string {
	if len(o.Services) == 0 {
		return "no service of this host was found or listed"
	}
	if !slices.ContainsFunc(o.Services, func(s Selector) bool { return m.untracker.refusal(s, o) == "" }) {
		return fmt.Sprintf("every selector is refused; %s: %s", o.Services[0], m.untracker.refusal(o.Services[0], o))
	}
	return ""
}
