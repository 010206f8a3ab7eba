package policy

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"time"
)

// proxier watches whether connections that synproxy has accepted reach their listeners. The client's
// SYN passes the host's own rules before it is answered; the connection that synproxy then opens to
// the listener comes by way of the loopback interface, and rules that know nothing of it may drop it.
type proxier struct {
	engaged   bool
	wanted    bool      // a SYN flood has called for it, and it is not over
	quiet     time.Time // since when the flood seems over; zero while it does not
	since     time.Time // when it was last engaged
	start     Proxied   // the counters when it was engaged
	failed    failure
	refused   map[uint16]failure // ports whose connections do not arrive
	ports     []uint16           // that it was last in front of
	handshake Handshake          // what it last said
	left      time.Time          // when it last was
}

// LastCookiesFor is how long cookies are taken after the last was handed out: a round trip of a second.
// Without that, a client whose ACK is on its way would be answered with a reset.
const LastCookiesFor = time.Second

// Evidence that synproxy must be taken back, in completed handshakes.
const (
	fewCompleted    = 3 // enough to say that nothing at all gets through
	enoughCompleted = 20
)

// update notes what synproxy does and takes it back when what it accepts does not arrive.
func (p *proxier) update(o Observation, on bool, c Config) []Event {
	if !on || !p.engaged {
		if on {
			p.since = o.Time
		}
		p.engaged, p.start = on, o.Work.Proxied
		return nil
	}
	if reason := o.Work.Proxied.fault(p.start); reason != "" {
		p.engaged, p.failed = false, failure{reason, o.Time.Add(c.RetryTrial)}
		return []Event{{Kind: StepEvent, Step: Synproxy, Reason: "taken back: " + reason}}
	}
	var events []Event
	for _, port := range slices.Sorted(maps.Keys(o.Work.Proxied.Ports)) {
		reason := o.Work.Proxied.Ports[port].fault(p.start.Ports[port])
		if reason == "" || p.refusal(port, o.Time) != "" {
			continue
		}
		if p.refused == nil {
			p.refused = make(map[uint16]failure)
		}
		p.refused[port] = failure{reason, o.Time.Add(c.RetryTrial)}
		events = append(events, Event{Kind: StepEvent, Step: Synproxy, Reason: fmt.Sprintf("tcp/%d taken back: %s", port, reason)})
	}
	return events
}

// refusal says why a port must not be proxied now; it is empty when nothing speaks against it.
func (p *proxier) refusal(port uint16, now time.Time) string {
	if f, ok := p.refused[port]; ok && now.Before(f.until) {
		return f.reason
	}
	return ""
}

// call notes whether a SYN flood calls for synproxy: from when handshakes under way hold too much of the
// table until those that nobody finishes would no longer, for the step's hold.
func (p *proxier) call(now time.Time, flood, quiet bool, hold time.Duration) bool {
	keepSince(&p.quiet, now, quiet && !flood)
	p.wanted = flood || p.wanted && (p.quiet.IsZero() || now.Sub(p.quiet) < hold)
	return p.wanted
}

// young reports whether synproxy was engaged just now: whether it works shows in its first second.
func (p *proxier) young(now time.Time) bool { return p.engaged && now.Sub(p.since) < time.Second }

// closing wants what takes the last cookies, for a moment after synproxy was in front of ports, and reports
// whether it does.
func (p *proxier) closing(wanted *Posture, o Observation) bool {
	if len(p.ports) == 0 || o.Time.Sub(p.left) >= LastCookiesFor || o.Time.Before(p.failed.until) {
		p.ports = nil
		return false
	}
	wanted.Synproxy, wanted.Handshake, wanted.LastCookies = p.ports, p.handshake, true
	return true
}

// lost reports whether too little of something passes.
func lost(passed, of uint64) bool {
	return of >= fewCompleted && passed == 0 || of >= enoughCompleted && 2*passed < of
}

// fault says what is wrong with the way of cookies, from the counters since before.
func (p Proxied) fault(before Proxied) string {
	returned, checked := since(p.Returned, before.Returned), since(p.Checked, before.Checked)
	if lost(checked, returned) {
		return fmt.Sprintf("the host's own rules let %d of %d packets through that may bring cookies back", checked, returned)
	}
	return ""
}

// fault says what is wrong with the way from a good cookie to the listener.
func (p ProxiedPort) fault(before ProxiedPort) string {
	completed, delivered := since(p.Completed, before.Completed), since(p.Delivered, before.Delivered)
	if lost(delivered, completed) {
		return fmt.Sprintf("the host's own rules let %d of %d connections through that synproxy had accepted", delivered, completed)
	}
	return ""
}

func (m *Machine) synproxySkipped(o Observation) string {
	switch {
	case o.Time.Before(m.proxier.failed.until):
		return m.proxier.failed.reason
	case o.Handshake.WindowScale == 0:
		return "tcp_window_scaling is off, and synproxy can't but scale windows"
	case !o.Handshake.Timestamps:
		return "tcp_timestamps is off: a SYN cookie could not carry window scale and SACK"
	case len(o.Listeners) == 0:
		return "no listening TCP port of this host was found or listed"
	case len(m.proxyable(o)) > 0:
		return ""
	}
	for _, s := range o.Listeners {
		if reason := cmp.Or(o.Unproxied[s], m.proxier.refusal(s.Port, o.Time)); reason != "" {
			return fmt.Sprintf("no port can be proxied; %s: %s", s, reason)
		}
	}
	return "every listening port may go untracked, which is better"
}

// proxyable returns the ports that synproxy may stand in front of: those that must stay tracked.
// While other TCP services live untracked there are none: synproxy needs tcp_loose=0, which their
// connections must not meet.
func (m *Machine) proxyable(o Observation) []uint16 {
	_, notrack := m.cfg.Step(NotrackStep)
	var ports []uint16
	for _, s := range o.Listeners {
		if notrack && slices.ContainsFunc(o.Services, func(safe Selector) bool {
			return (safe == s || safe.Swallows(s)) && m.untracker.refusal(safe, o) == ""
		}) {
			return nil
		}
		if o.Unproxied[s] == "" && m.proxier.refusal(s.Port, o.Time) == "" {
			ports = append(ports, s.Port)
		}
	}
	slices.Sort(ports)
	return slices.Compact(ports)
}

// synRecvLife is how many seconds an unanswered handshake stays in the table by default, as
// nf_conntrack_tcp_timeout_syn_recv.
const synRecvLife = 60

// proxyQuiet reports whether the handshakes that nobody finishes would hold less than the leave mark
// of the half-open share, were they tracked again.
func (m *Machine) proxyQuiet(o Observation) bool {
	life := o.Admin["nf_conntrack_tcp_timeout_syn_recv"]
	if life == 0 {
		life = synRecvLife
	}
	return 100*m.handshakes.Rate*float64(life) < halfOpenLeave*float64(o.Capacity)
}

// unfinished returns how many handshakes synproxy answered that never came back. A cookie may come
// back a little after its SYN was counted.
func unfinished(p Proxied) uint64 { return since(p.SYNs, p.Completed()) }
