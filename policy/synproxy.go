package policy

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"time"
)

// Synproxy is the step that answers handshakes with SYN cookies in the place of this host's services and of those that
// it translates to inside hosts.
const Synproxy StepName = "synproxy"

// synproxy watches whether connections that the kernel's synproxy has accepted reach their listeners. The client's
// SYN passes the host's own rules before it is answered; the connection that synproxy then opens to
// the listener comes by way of the loopback interface, and rules that know nothing of it may drop it. To an inside host
// it leaves as if it were this host's own.
type synproxy struct {
	unfinished pace      // handshakes it answered that nobody finished
	engaged    bool      // its rules are wanted
	wanted     bool      // a SYN flood has called for it, and it is not over
	calmSince  time.Time // since when the flood seems over; zero while it does not
	since      time.Time // when it was last engaged
	start      Proxied   // the counters when it was engaged
	failed     failure
	refused    map[Selector]failure // services whose connections do not arrive
	services   []Selector           // that it was last in front of
	handshake  Handshake            // what it last said
	inside     map[Selector]uint16  // what inside hosts say, as far as it is known
	left       time.Time            // when it last was in front of services
}

// LastCookiesFor is how long cookies are taken after the last was handed out: a round trip of a second.
// Without that, a client whose ACK is on its way would be answered with a reset.
const LastCookiesFor = time.Second

// Evidence that synproxy must be taken back, in completed handshakes.
const (
	fewCompleted    = 3 // enough to say that nothing at all gets through
	enoughCompleted = 20
)

func (x *synproxy) observe(s situation) {
	x.unfinished.update(s.Time, unfinished(s.Work.Proxied))
	if x.inside == nil {
		x.inside = make(map[Selector]uint16)
	}
	maps.Copy(x.inside, s.Work.InsideMSS)
	maps.DeleteFunc(x.inside, func(one Selector, _ uint16) bool { return !slices.Contains(s.Listeners, one) })
}

func (x *synproxy) skipped(s situation) string {
	switch {
	case s.Time.Before(x.failed.until):
		return x.failed.reason
	case len(s.Listeners) == 0:
		return "no listening TCP port of this host was found or listed"
	case len(x.proxyable(s)) > 0:
		return ""
	}
	if why := s.shared.untrackedBeside(s.Listeners); why != "" {
		for _, l := range s.Listeners {
			if !s.shared.mayGo(l) && x.refusal(l, s.Observation) == "" {
				return fmt.Sprintf("%s could be proxied, but %s", l, why)
			}
		}
	}
	for _, l := range s.Listeners {
		if reason := x.refusal(l, s.Observation); reason != "" {
			return fmt.Sprintf("no port can be proxied; %s: %s", l, reason)
		}
	}
	return "every listening port may go untracked, which is better"
}

// proxyable returns the services that synproxy may stand in front of: those that must stay tracked.
// While other TCP services may live untracked there are none: synproxy needs tcp_loose=0, which their
// connections must not meet.
func (x *synproxy) proxyable(s situation) []Selector {
	var services []Selector
	if s.shared.untrackedBeside(s.Listeners) != "" {
		return nil
	}
	for _, l := range s.Listeners {
		if x.refusal(l, s.Observation) == "" && !slices.Contains(services, l) {
			services = append(services, l)
		}
	}
	return services
}

// refusal says why a service must not be proxied now; it is empty when nothing speaks against it.
func (x *synproxy) refusal(l Selector, o Observation) string {
	if reason := cmp.Or(o.Unproxied[l], x.failure(l, o.Time)); reason != "" {
		return reason
	}
	switch {
	case l.Forwarded() && x.inside[l] == 0:
		return "its inside host has not been seen to accept a connection yet: what size of segments it takes is not known"
	case l.Forwarded():
	case o.Handshake.WindowScale == 0:
		return "tcp_window_scaling is off, and synproxy can't but scale windows"
	case !o.Handshake.Timestamps:
		return "tcp_timestamps is off: a SYN cookie could not carry window scale and SACK"
	}
	return ""
}

// learn returns the services whose inside host is to be listened to: those that nothing else speaks against.
func (*synproxy) learn(s situation, level int) []Selector {
	if level == 0 || !s.listed() {
		return nil
	}
	return slices.DeleteFunc(slices.Clone(s.Listeners), func(l Selector) bool {
		return !l.Forwarded() || s.Unproxied[l] != ""
	})
}

func (x *synproxy) want(s situation, p *Posture) []Event {
	settle := s.marks.Settle
	if !s.engaged {
		settle = 0 // a call does not outlast the step
	}
	called := x.call(s.Time, s.works && (s.synFlood || s.pinned), x.floodOver(s), settle)
	mustStay := s.shared.loose.mustStay(s.Observation)
	proxy := called && s.works && !mustStay
	closing := !proxy && !mustStay && x.closing(s, p)
	s.shared.proxied = nil
	if proxy || closing {
		s.shared.loose.strict = true
		services := x.proxyable(s)
		if proxy {
			s.shared.proxied = services
		}
		if x.ready(s, p, services) && proxy {
			p.Synproxy, p.Handshake, p.InsideMSS = services, s.Handshake, x.insideMSS(services)
			x.services, x.handshake, x.left = p.Synproxy, p.Handshake, s.Time
		}
	}
	p.Learn = x.learn(s, p.Level)
	if s.shared.crowded && !p.LastCookies {
		for _, one := range p.Synproxy { // the handshakes from before synproxy answered them would stay for minutes
			if !one.Forwarded() {
				p.purge(Purge{Class: FlowClass{tcp, one.Port}, Local: s.cfg.Profile == Auto,
					Unfinished: unfinishedForInNeed})
			}
		}
	}
	events := x.update(s.Observation, proxy && len(p.Synproxy) > 0, *s.cfg)
	s.shared.asks.fast = s.shared.asks.fast || x.young(s.Time)
	return events
}

// ready wants the settings that synproxy depends on, and reports whether they were wanted one
// tick ago: they must be in force before its rules are.
//
// A cookie's timestamp is the kernel's clock, and what the listener says later is brought in line with
// it as long as there are rules. Without the random offset that tcp_timestamps=1 adds to it for each
// connection, the listener's own timestamps are a little ahead of the cookie's, and a connection lives
// on when the rules go; with it, half of them would run backwards and stall (RFC 7323, section 5). An inside host's
// clock is its own, so no cookie that is given in its place has timestamps.
func (*synproxy) ready(s situation, p *Posture, services []Selector) bool {
	needed := make(map[string]int)
	own := slices.ContainsFunc(services, func(one Selector) bool { return !one.Forwarded() })
	if own && s.Admin[tcpTimestamps] == randomOffset {
		needed[tcpTimestamps], p.Settings[tcpTimestamps] = plainClock, plainClock
	}
	if s.Admin[tcpLoose] != 0 {
		needed[tcpLoose] = 0 // the arbiter sees to it
	}
	for name, value := range needed {
		if before, set := s.before.Settings[name]; !set || before != value {
			return false
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

func (*synproxy) done(o Observation) uint64 { return o.Work.Proxied.SYNs }

func (x *synproxy) quiet(s situation, _ float64) bool { return x.floodOver(s) }

func (*synproxy) brought(s situation, done uint64, _ outcome) string {
	return fmt.Sprintf("answered %d handshakes with cookies, %d came back", done, s.Work.Proxied.Completed())
}

func (*synproxy) status(s situation) string {
	if n := len(s.before.Synproxy); n > 0 {
		return fmt.Sprintf("in front of %d services", n)
	}
	return fmt.Sprintf("waits for handshakes under way to hold %d %% of the capacity, now %.0f %%",
		halfOpenEnter, s.halfOpen)
}

// synRecvLife is how many seconds an unanswered handshake stays in the table by default, as
// nf_conntrack_tcp_timeout_syn_recv.
const synRecvLife = 60

// floodOver reports whether the handshakes that nobody finishes would hold less than the leave mark
// of the half-open share, were they tracked again.
func (x *synproxy) floodOver(s situation) bool {
	life := cmp.Or(s.Admin["nf_conntrack_tcp_timeout_syn_recv"], synRecvLife)
	return 100*x.unfinished.Rate*float64(life) < halfOpenLeave*float64(s.Capacity)
}

// update notes what synproxy does and takes it back when what it accepts does not arrive.
func (x *synproxy) update(o Observation, on bool, c Config) []Event {
	if !on || !x.engaged {
		if on {
			x.since = o.Time
		}
		x.engaged, x.start = on, o.Work.Proxied
		return nil
	}
	if reason := o.Work.Proxied.fault(x.start); reason != "" {
		x.engaged, x.failed = false, failure{reason, o.Time.Add(c.RetryTrial)}
		return []Event{{Kind: StepEvent, Step: Synproxy, Reason: "taken back: " + reason}}
	}
	var events []Event
	for _, one := range slices.SortedFunc(maps.Keys(o.Work.Proxied.Services), compareSelectors) {
		reason := o.Work.Proxied.Services[one].fault(x.start.Services[one], one)
		if reason == "" || x.failure(one, o.Time) != "" {
			continue
		}
		if x.refused == nil {
			x.refused = make(map[Selector]failure)
		}
		x.refused[one] = failure{reason, o.Time.Add(c.RetryTrial)}
		events = append(events, Event{Kind: StepEvent, Step: Synproxy,
			Reason: fmt.Sprintf("%s taken back: %s", one, reason)})
	}
	return events
}

// failure says why a service was taken back; it is empty when it was not, or long ago.
func (x *synproxy) failure(one Selector, now time.Time) string {
	if f, ok := x.refused[one]; ok && now.Before(f.until) {
		return f.reason
	}
	return ""
}

// call notes whether a SYN flood calls for synproxy: from when handshakes under way hold too much of the
// table until those that nobody finishes would no longer, for the step's settle time.
func (x *synproxy) call(now time.Time, flood, over bool, settle time.Duration) bool {
	keepSince(&x.calmSince, now, over && !flood)
	x.wanted = flood || x.wanted && (x.calmSince.IsZero() || now.Sub(x.calmSince) < settle)
	return x.wanted
}

// cookies says how a forwarded service stands.
func (x *synproxy) cookies(one Selector, s situation) string {
	switch {
	case !one.Forwarded() || !slices.Contains(s.Listeners, one):
		return ""
	case slices.Contains(x.services, one):
		return "answered"
	}
	beside := ""
	if !s.shared.mayGo(one) {
		beside = s.shared.untrackedBeside(s.Listeners)
	}
	return cmp.Or(x.refusal(one, s.Observation), beside, "ready")
}

// young reports whether synproxy was engaged just now: whether it works shows in its first second.
func (x *synproxy) young(now time.Time) bool { return x.engaged && now.Sub(x.since) < time.Second }

// closing wants what takes the last cookies, for a moment after synproxy was in front of services, and reports
// whether it does.
func (x *synproxy) closing(s situation, p *Posture) bool {
	if len(x.services) == 0 || s.Time.Sub(x.left) >= LastCookiesFor || s.Time.Before(x.failed.until) {
		x.services = nil
		return false
	}
	p.Synproxy, p.Handshake, p.InsideMSS, p.LastCookies = x.services, x.handshake, x.insideMSS(x.services), true
	return true
}

// insideMSS returns what the inside hosts of services announce.
func (x *synproxy) insideMSS(services []Selector) map[Selector]uint16 {
	var said map[Selector]uint16
	for _, one := range services {
		if !one.Forwarded() {
			continue
		}
		if said == nil {
			said = make(map[Selector]uint16)
		}
		said[one] = x.inside[one]
	}
	return said
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
func (p ProxiedService) fault(before ProxiedService, one Selector) string {
	completed, delivered := since(p.Completed, before.Completed), since(p.Delivered, before.Delivered)
	switch {
	case !lost(delivered, completed):
	case one.Forwarded():
		return fmt.Sprintf("%d of %d connections that synproxy had accepted came about: the host's own rules, or the inside "+
			"host, let no more through", delivered, completed)
	default:
		return fmt.Sprintf("the host's own rules let %d of %d connections through that synproxy had accepted",
			delivered, completed)
	}
	return ""
}

// unfinished returns how many handshakes synproxy answered that never came back. A cookie may come
// back a little after its SYN was counted.
func unfinished(p Proxied) uint64 { return since(p.SYNs, p.Completed()) }

// untrackedBeside names a service among some that may go untracked, and says what its connections must not meet; empty
// where none may.
func (h *shared) untrackedBeside(services []Selector) string {
	if i := slices.IndexFunc(services, h.mayGo); i >= 0 {
		return fmt.Sprintf("%s may go untracked, and its connections must not meet tcp_loose=0, which cookies need",
			services[i])
	}
	return ""
}
