package policy

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"time"
)

// Tighten is the step that shortens timeouts, of new entries and of those that there are.
const Tighten StepName = "tighten"

// timeoutFloors returns the shortest timeout, in seconds, that tighten sets for each state. What is not listed is
// left alone. TCP that carries a conversation keeps what RFC 5382 asks of a NAT (REQ-5: 2 h 4 min). UDP streams
// keep up to an hour: the kernel's own 2 min are the least that RFC 4787 allows (REQ-5), and who raised them did it
// for phones, which register once an hour (RFC 3261, 10.2), or for tunnels.
//
// UDP that is not a stream keeps 30 s, the kernel's default: WireGuard's PersistentKeepalive, SIP registrations and
// STUN (RFC 8445, 11) keep their mappings alive every 25 s or so, and calls come in just before. A connection that is
// half closed may wait for its answer in silence, so FIN_WAIT and CLOSE_WAIT keep a minute; who raised CLOSE_WAIT, as
// kube-proxy does to an hour, did it for such connections.
//
// A connection whose path is gone for a while repeats itself ever more seldom, every two minutes in the end
// (TCP_RTO_MAX in include/net/tcp.h), and goes on when the path is back. Protocols without ports, such as ESP and
// 6in4, have one timeout for whatever they carry, and tunnels are silent for minutes: they keep the kernel's
// default.
func timeoutFloors(p Profile) map[string]int {
	floors := map[string]int{
		"nf_conntrack_tcp_timeout_syn_sent":           10,
		"nf_conntrack_tcp_timeout_syn_recv":           10,
		"nf_conntrack_tcp_timeout_established":        7440,
		"nf_conntrack_tcp_timeout_fin_wait":           60,
		"nf_conntrack_tcp_timeout_close_wait":         3600,
		"nf_conntrack_tcp_timeout_last_ack":           10,
		"nf_conntrack_tcp_timeout_time_wait":          10,
		"nf_conntrack_tcp_timeout_close":              5,
		"nf_conntrack_tcp_timeout_max_retrans":        150,
		"nf_conntrack_tcp_timeout_unacknowledged":     150,
		"nf_conntrack_udp_timeout":                    30,
		"nf_conntrack_udp_timeout_stream":             3600,
		"nf_conntrack_icmp_timeout":                   5,
		"nf_conntrack_icmpv6_timeout":                 5,
		"nf_conntrack_generic_timeout":                600,
		"nf_conntrack_gre_timeout":                    10,
		"nf_conntrack_gre_timeout_stream":             120,
		"nf_conntrack_sctp_timeout_closed":            5,
		"nf_conntrack_sctp_timeout_cookie_wait":       3,
		"nf_conntrack_sctp_timeout_cookie_echoed":     3,
		"nf_conntrack_sctp_timeout_established":       210,
		"nf_conntrack_sctp_timeout_shutdown_sent":     3,
		"nf_conntrack_sctp_timeout_shutdown_recd":     3,
		"nf_conntrack_sctp_timeout_shutdown_ack_sent": 3,
		"nf_conntrack_sctp_timeout_heartbeat_sent":    10,
		"nf_conntrack_sctp_timeout_heartbeat_acked":   210,
		"nf_conntrack_dccp_timeout_request":           20,
		"nf_conntrack_dccp_timeout_respond":           20,
		"nf_conntrack_dccp_timeout_partopen":          60,
		"nf_conntrack_dccp_timeout_open":              7440,
		"nf_conntrack_dccp_timeout_closereq":          10,
		"nf_conntrack_dccp_timeout_closing":           10,
		"nf_conntrack_dccp_timeout_timewait":          10,
	}
	if p == NATGateway {
		maps.Copy(floors, gatewayFloors)
	}
	return floors
}

var serverFloors = timeoutFloors(Server)

// gatewayFloors are longer where the other end is far away and an entry that is gone too soon is a mapping
// that is lost: what comes late finds nobody, and a port that is given anew too soon is one that the other end still
// holds in TIME_WAIT.
var gatewayFloors = map[string]int{
	"nf_conntrack_tcp_timeout_syn_sent":  20,
	"nf_conntrack_tcp_timeout_syn_recv":  20,
	"nf_conntrack_tcp_timeout_last_ack":  30,
	"nf_conntrack_tcp_timeout_time_wait": 60,
	"nf_conntrack_icmp_timeout":          10,
	"nf_conntrack_icmpv6_timeout":        10,
	"nf_conntrack_gre_timeout":           30,
}

// unanswered are the timeouts of TCP that nobody answers: where this host sees one direction of connections, of those.
var unanswered = [...]string{"nf_conntrack_tcp_timeout_syn_sent", "nf_conntrack_tcp_timeout_unacknowledged"}

// scaleSteps is how finely timeouts follow pressure: each new scale rewrites the sysctls and every
// entry, so it moves in quarters.
const scaleSteps = 4

// tighten scales timeouts with pressure, as pf's adaptive timeouts do: the administrator's value
// at the enter mark, the floor when the table is full.
type tighten struct {
	plain
	peak   float64 // the worst pressure of the last settle time
	peakAt time.Time
	none   bool // as good as no entry is finished
	dead   bool // many SYNs wait for an answer
}

func (t *tighten) want(s situation, p *Posture) []Event {
	if c := s.Census; c != nil {
		over := c.Classes[Closing] + c.Classes[Replied]
		if slices.ContainsFunc(s.before.Synproxy, Selector.Forwarded) {
			over += c.Classes[HalfOpen] // handshakes from before somebody else answered them
		}
		t.none = float64(over) < finishedPart*float64(c.Seen)
		t.dead = float64(c.TCPStates[tcpSynSent]) > deadPart*float64(c.Seen)
	}
	if !s.works {
		return nil
	}
	p.Retire = t.retire(s)
	x := t.scale(s)
	oneSided := s.oneSided()
	for name, floor := range s.cfg.Floors {
		if far, longer := gatewayFloors[name]; longer && s.forwards() && floor == serverFloors[name] {
			floor = far // of a host that is found to be a gateway, unless the file says another floor
		}
		if oneSided && slices.Contains(unanswered[:], name) {
			continue
		}
		floor = max(floor, s.ordinary.patience(name))
		if value, known := s.Admin[name]; known && value > floor && x > 0 {
			p.Settings[name] = floor + int(math.Round(float64(value-floor)*(1-x)))
		}
	}
	return nil
}

// How long finished entries must have been silent: as long as a resolver waits for a late answer (resolv.conf(5),
// timeout), and not as long while the table is about to be full.
const (
	finishedAfter       = 5 * time.Second
	finishedAfterInNeed = 2 * time.Second
	inNeed              = 90               // percent of pressure
	portsFinishedAfter  = 60 * time.Second // TCP_TIMEWAIT_LEN in include/net/tcp.h: so long the far end waits
	mostFinished        = 5000             // at one go: a tenth of a second's work
	finishedPart        = 0.05             // part of the entries that may be finished, for a pass to be worth it
	deadPart            = 0.05             // part of the entries that unanswered SYNs must be for a pass of their own
)

// retire says which finished entries go: this comes before anybody is limited, and nobody loses by it.
func (t *tighten) retire(s situation) Retirement {
	r := Retirement{Silent: finishedAfter, Ports: portsFinishedAfter, Most: mostFinished}
	if s.pressure >= inNeed {
		r = Retirement{Silent: finishedAfterInNeed, Ports: finishedAfterInNeed}
	}
	r.Dead = t.dead && !s.oneSided()
	if t.none && !r.Dead {
		return Retirement{} // the pass would cost more than it brings
	}
	return r
}

// scale returns how far timeouts are on their way to the floors, from 0 to 1. The worst pressure counts for one
// settle time, so that a pulse doesn't rewrite the table with each of its edges.
func (t *tighten) scale(s situation) float64 {
	if s.pressure >= t.peak || s.Time.Sub(t.peakAt) >= s.marks.Settle {
		t.peak, t.peakAt = s.pressure, s.Time
	}
	if s.marks.Enter >= 100 {
		return 1
	}
	x := min(1, max(0, (t.peak-s.marks.Enter)/(100-s.marks.Enter)))
	return math.Ceil(x*scaleSteps) / scaleSteps
}

func (*tighten) done(o Observation) uint64 { return o.Work.Retimed + o.Work.Retired }

func (*tighten) brought(s situation, done uint64, was outcome) string {
	retired := since(s.Work.Retired, was.retired)
	return fmt.Sprintf("shortened %d entries, let %d finished ones go", since(done, retired), retired)
}
