package conntrack

import (
	"net/netip"
	"slices"

	"ctguard/policy"
)

// selection recognizes the entries of safe traffic; see [policy.Selector].
type selection struct {
	ports map[servicePort][]ends // of selectors with one port
	wide  []wide                 // with several, or with none
	echo  []ends
	group bool
	local func(netip.Addr) bool

	forwarded map[outside]netip.AddrPort // where forwarded services with one port lead to
}

// outside is what clients of a forwarded service ask.
type outside struct {
	proto uint8
	at    netip.AddrPort
}

type servicePort struct {
	proto uint8
	port  uint16
}

// ends are the prefixes that a selector's packets go between; the zero one holds every address.
type ends struct{ remote, local netip.Prefix }

// wide is a selector that no single port names.
type wide struct {
	ends
	proto       uint8 // 0 means every protocol
	first, last uint16
	asks        bool // what this host asks itself is part of it
}

// newSelection leaves out selectors that name an interface: an entry does not say by which one its packets come, so
// it may be that of a flow which is tracked still. Their entries end by themselves, as no packet of theirs comes to
// conntrack any more.
func newSelection(selectors []policy.Selector, local func(netip.Addr) bool) selection {
	s := selection{ports: make(map[servicePort][]ends), local: local, forwarded: make(map[outside]netip.AddrPort)}
	for _, sel := range selectors {
		proto := map[policy.Protocol]uint8{policy.TCP: protoTCP, policy.UDP: protoUDP}[sel.Protocol]
		between := ends{sel.Remote, sel.Local}
		first, last := sel.Ports()
		switch {
		case sel.Forwarded():
			if sel.Last == 0 {
				s.forwarded[outside{proto, netip.AddrPortFrom(sel.Local.Addr(), sel.Port)}] = sel.Inside
			}
		case sel.Device != "":
		case sel.Group:
			s.group = true
		case sel.Protocol == policy.ICMP:
			s.echo = append(s.echo, between)
		case first != last:
			s.wide = append(s.wide, wide{between, proto, first, last, sel.Whole()})
		default:
			key := servicePort{proto, first}
			s.ports[key] = append(s.ports[key], between)
		}
	}
	return s
}

// frees says whether an entry belongs to the selection and can go: untracked packets would be
// neither translated nor helped, so entries with NAT or a helper stay.
func (s *selection) frees(e *entry) bool {
	if len(s.forwarded) > 0 && s.attempts(e) {
		return !e.helped
	}
	if !s.group && len(s.echo) == 0 && len(s.ports) == 0 && len(s.wide) == 0 {
		return false
	}
	return s.holds(e) && !e.helped && !e.translated()
}

// attempts says whether an entry is of a flow to a forwarded service that has come to nothing so far, as a flood's: no
// answer yet, or no more than a handshake's. What there is between a client and the inside host stays, for when the
// service is tracked again, also because the client may be one who is answered some other way, and tracked still.
func (s *selection) attempts(e *entry) bool {
	inside, ok := s.forwarded[outside{e.orig.proto, netip.AddrPortFrom(e.orig.dst.netip(), e.orig.dstPort)}]
	var reply tuple
	if c := e.class(false); !ok || c != policy.Unreplied && c != policy.HalfOpen || !reply.parse(e.bytes(e.replySpan)) {
		return false
	}
	return netip.AddrPortFrom(reply.src.netip(), reply.srcPort) == inside
}

func (s *selection) holds(e *entry) bool {
	if s.group && e.orig.dst.isGroup() {
		return true
	}
	named := s.named(e)
	if len(named) == 0 && len(s.wide) == 0 {
		return false
	}
	src, dst := e.orig.src.netip(), e.orig.dst.netip()
	switch toHere, fromHere := s.local(dst), s.local(src); {
	case toHere == fromHere:
		// From an own address to an own address is loopback traffic, which selectors leave alone, and
		// what is neither is forwarded.
		return false
	case toHere:
		return slices.ContainsFunc(named, func(between ends) bool { return between.hold(src, dst) }) ||
			slices.ContainsFunc(s.wide, func(w wide) bool {
				return w.of(e) && w.first <= e.orig.dstPort && e.orig.dstPort <= w.last && w.hold(src, dst)
			})
	}
	return slices.ContainsFunc(s.wide, func(w wide) bool { return w.asks && w.of(e) && w.hold(dst, src) })
}

// named returns where the packets go of the selectors that name an entry's port, or echo.
func (s *selection) named(e *entry) []ends {
	switch {
	case e.orig.proto == protoICMP && e.orig.icmpType == echoRequest,
		e.orig.proto == protoICMPv6 && e.orig.icmpType == echoRequestV6:
		return s.echo
	case e.orig.proto == protoTCP || e.orig.proto == protoUDP:
		return s.ports[servicePort{e.orig.proto, e.orig.dstPort}]
	}
	return nil
}

// of says whether an entry is of w's protocol.
func (w wide) of(e *entry) bool { return w.proto == 0 || w.proto == e.orig.proto }

// hold says whether packets between two addresses are meant.
func (b ends) hold(remote, local netip.Addr) bool {
	return (!b.remote.IsValid() || b.remote.Contains(remote)) && (!b.local.IsValid() || b.local.Contains(local))
}

// isGroup says whether a is a multicast address or the limited broadcast address (RFC 919). The
// broadcast addresses of subnets look like hosts; only the routing table knows them.
func (a address) isGroup() bool {
	if a.is4() {
		ip := uint32(a.lo)
		return ip>>28 == 0xe || ip == 1<<32-1
	}
	return a.hi>>56 == 0xff
}
