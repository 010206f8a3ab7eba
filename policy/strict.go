package policy

import "slices"

// strict wants what holds TCP to the connections that conntrack knows: drop-invalid and synproxy,
// and tcp_loose=0 for both. Connections that live untracked, or did until a moment ago, must not meet
// any of it.
func (m *Machine) strict(p *Posture, o Observation) []Event {
	_, invalid := m.works(DropInvalid, o)
	step, proxy := m.works(Synproxy, o)
	pinned := m.override != nil && m.override.Kind == Pin // an operator's word counts like a flood
	proxy = m.proxier.call(o.Time, proxy && (m.synFlood || pinned), m.proxyQuiet(o), step.Hold) && proxy
	owing := len(m.untracker.owed) > 0
	p.DropInvalid = invalid && !owing
	loose := o.Admin[tcpLoose] != 0 && (owing || m.untracker.untracked() || m.untracks(p.Notrack))
	proxy = proxy && !loose
	closing := !proxy && !loose && m.proxier.closing(p, o)
	if (invalid || proxy || closing) && !loose && o.Admin[tcpLoose] != 0 {
		p.Settings[tcpLoose] = 0
	}
	if (proxy || closing) && m.readyForProxy(p, o) && proxy {
		p.Synproxy, p.Handshake = m.proxyable(o), o.Handshake
		m.proxier.ports, m.proxier.handshake, m.proxier.left = p.Synproxy, p.Handshake, o.Time
	}
	return m.proxier.update(o, proxy && len(p.Synproxy) > 0, m.cfg)
}

// readyForProxy wants the settings that synproxy depends on, and reports whether they were wanted one
// tick ago: they must be in force before its rules are.
//
// A cookie's timestamp is the kernel's clock, and what the listener says later is brought in line with
// it as long as there are rules. Without the random offset that tcp_timestamps=1 adds to it for each
// connection, the listener's own timestamps are a little ahead of the cookie's, and a connection lives
// on when the rules go; with it, half of them would run backwards and stall (RFC 7323, section 5).
func (m *Machine) readyForProxy(p *Posture, o Observation) bool {
	if o.Admin[tcpTimestamps] == randomOffset {
		p.Settings[tcpTimestamps] = plainClock
	}
	was := m.decision.Posture.Settings
	for _, name := range []string{tcpLoose, tcpTimestamps} {
		if value, wanted := p.Settings[name]; wanted {
			if before, set := was[name]; !set || before != value {
				return false
			}
		}
	}
	return true
}

// tcpTimestamps is net.ipv4.tcp_timestamps, and two of its values: Documentation/networking/ip-sysctl.rst.
const (
	tcpTimestamps = "tcp_timestamps"
	randomOffset  = 1
	plainClock    = 2
)

// untracks reports whether a TCP service of the list is about to be untracked.
func (m *Machine) untracks(list []Notrack) bool {
	_, engaged := m.engaged(NotrackStep)
	return engaged && slices.ContainsFunc(list, func(n Notrack) bool {
		return n.Selector.connects()
	})
}
