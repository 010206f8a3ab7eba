package policy

import "slices"

// strict wants what holds TCP to the connections that conntrack knows: drop-invalid and synproxy,
// and tcp_loose=0 for both. Connections that live untracked, or did until a moment ago, must not meet
// any of it.
func (m *Machine) strict(p *Posture, o Observation) []Event {
	_, invalid := m.works(DropInvalid, o)
	_, proxy := m.works(Synproxy, o)
	owing := len(m.untracker.owed) > 0
	p.DropInvalid = invalid && !owing
	loose := o.Admin[tcpLoose] != 0 && (owing || m.untracker.untracked() || m.untracks(p.Notrack))
	if (invalid || proxy) && !loose && o.Admin[tcpLoose] != 0 {
		p.Settings[tcpLoose] = 0
	}
	proxy = proxy && !loose
	if proxy {
		p.Synproxy, p.Handshake = m.proxyable(o), o.Handshake
	}
	return m.proxier.update(o, proxy && len(p.Synproxy) > 0, m.cfg)
}

// untracks reports whether a TCP service of the list is about to be untracked.
func (m *Machine) untracks(list []Notrack) bool {
	_, engaged := m.engaged(NotrackStep)
	return engaged && slices.ContainsFunc(list, func(n Notrack) bool {
		return n.Selector.Protocol == TCP && !n.Selector.Remote.IsValid()
	})
}
