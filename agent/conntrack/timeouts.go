package conntrack

// The settings that say how long an entry of a protocol and state lives, as sysctl names without
// net.netfilter.; see nf_ct_sysctl_table in net/netfilter/nf_conntrack_standalone.c. The states are
// those of enum tcp_conntrack, sctp_conntrack and (until its tracker was removed) ct_dccp_states, in
// include/uapi/linux/netfilter/ and include/linux/netfilter/nf_conntrack_dccp.h.
const (
	tcpTimeout  = "nf_conntrack_tcp_timeout_"
	sctpTimeout = "nf_conntrack_sctp_timeout_"
	dccpTimeout = "nf_conntrack_dccp_timeout_"
)

var tcpStateNames = [...]string{
	tcpSynSent: "syn_sent", tcpSynRecv: "syn_recv", tcpEstablished: "established",
	tcpFinWait: "fin_wait", tcpCloseWait: "close_wait", tcpLastAck: "last_ack",
	tcpTimeWait: "time_wait", tcpClose: "close",
	tcpSynSent2: "syn_sent", // simultaneous open has no setting of its own
}

var sctpStateNames = [...]string{
	1: "closed", 2: "cookie_wait", 3: "cookie_echoed", 4: "established", 5: "shutdown_sent",
	6: "shutdown_recd", 7: "shutdown_ack_sent", 8: "heartbeat_sent", 9: "heartbeat_acked",
}

var dccpStateNames = [...]string{
	1: "request", 2: "respond", 3: "partopen", 4: "open", 5: "closereq", 6: "closing", 7: "timewait",
}

// limits is a set of timeouts in seconds in the shape that is quickest to ask; noTimeout where
// nothing was asked for.
type limits struct {
	tcp, sctp, dccp        [16]uint32
	tcpUnacked             uint32
	udp, udpStream         uint32
	gre, greStream         uint32
	icmp, icmpv6, anything uint32
}

func newLimits(timeouts map[string]int) *limits {
	get := func(name string) uint32 {
		if seconds, ok := timeouts[name]; ok && seconds >= 0 {
			return uint32(seconds)
		}
		return noTimeout
	}
	byState := func(prefix string, names []string) (l [16]uint32) {
		for i := range l {
			if l[i] = noTimeout; i < len(names) && names[i] != "" {
				l[i] = get(prefix + names[i])
			}
		}
		return l
	}
	return &limits{
		tcp:        byState(tcpTimeout, tcpStateNames[:]),
		sctp:       byState(sctpTimeout, sctpStateNames[:]),
		dccp:       byState(dccpTimeout, dccpStateNames[:]),
		tcpUnacked: get(tcpTimeout + "unacknowledged"),
		udp:        get("nf_conntrack_udp_timeout"),
		udpStream:  get("nf_conntrack_udp_timeout_stream"),
		gre:        get("nf_conntrack_gre_timeout"),
		greStream:  get("nf_conntrack_gre_timeout_stream"),
		icmp:       get("nf_conntrack_icmp_timeout"),
		icmpv6:     get("nf_conntrack_icmpv6_timeout"),
		anything:   get("nf_conntrack_generic_timeout"),
	}
}

// of returns the most seconds that an entry may have left.
func (l *limits) of(e *entry) uint32 {
	switch e.orig.proto {
	case protoTCP:
		return l.ofTCP(e)
	case protoUDP, protoUDPLite:
		// The kernel makes a flow a stream, and assured, when it is two-way and older than two
		// seconds (nf_conntrack_udp_packet in net/netfilter/nf_conntrack_proto_udp.c).
		if e.status&statusAssured != 0 {
			return l.udpStream
		}
		return l.udp
	case protoICMP:
		return l.icmp
	case protoICMPv6:
		return l.icmpv6
	case protoGRE:
		if e.status&statusSeenReply != 0 {
			return l.greStream
		}
		return l.gre
	case protoSCTP:
		if e.protoInfo == protoInfoSCTP {
			return l.sctp[e.state&15]
		}
	case protoDCCP:
		if e.protoInfo == protoInfoDCCP {
			return l.dccp[e.state&15]
		}
	}
	return l.anything
}

// ofTCP follows nf_conntrack_tcp_packet in net/netfilter/nf_conntrack_proto_tcp.c: a flow that was
// picked up in the middle and never answered, and one that waits for an acknowledgement, live no
// longer than the unacknowledged timeout.
func (l *limits) ofTCP(e *entry) uint32 {
	if e.protoInfo != protoInfoTCP {
		return noTimeout
	}
	limit := l.tcp[e.state&15]
	pickedUp := e.state == tcpEstablished && e.status&statusSeenReply == 0
	if pickedUp || l.tcpUnacked < limit && e.unacked() {
		limit = min(limit, l.tcpUnacked)
	}
	return limit
}

// silence tells how long entries have been silent.
type silence struct{ inForce, retimed *limits }

// newSilence takes the timeouts in force and those that a [Retiming] gave to entries that may be there still, both in
// seconds by sysctl name.
func newSilence(inForce, retimed map[string]int) silence {
	return silence{newLimits(inForce), newLimits(retimed)}
}

// of returns how long ago the last packet of an entry came, at least. The kernel sets the timeout of an entry's state
// anew with each packet, so what is missing is how long it has been silent. A retiming takes the silence off what it
// gives: an entry with no more left than that is taken for one that was given it, and spoke as late as it can have.
// Of one that has more left than the timeout in force nothing is known: it was set under a longer one.
func (s silence) of(e *entry) (seconds uint32, known bool) {
	limit := s.inForce.of(e)
	if limit == noTimeout || e.timeout > limit {
		return 0, false
	}
	if given := s.retimed.of(e); given != noTimeout && e.timeout <= given {
		limit = min(limit, given)
	}
	return limit - e.timeout, true
}

// atLeast says whether no packet of an entry has come for so many seconds. One of which nothing is known counts as
// recent.
func (s silence) atLeast(e *entry, seconds uint32) bool {
	silent, known := s.of(e)
	return known && silent >= seconds
}
