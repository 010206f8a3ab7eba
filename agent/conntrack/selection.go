package conntrack

import (
	"net/netip"

	"ctguard/policy"
)

// selection recognizes the entries of safe traffic; see [policy.Selector].
type selection struct {
	ports map[servicePort][]netip.Prefix // the remotes of each service
	echo  []netip.Prefix
	group bool
	local func(netip.Addr) bool
}

type servicePort struct {
	proto uint8
	port  uint16
}

func newSelection(selectors []policy.Selector, local func(netip.Addr) bool) selection {
	s := selection{ports: make(map[servicePort][]netip.Prefix), local: local}
	for _, sel := range selectors {
		switch {
		case sel.Group:
			s.group = true
		case sel.Protocol == policy.ICMP:
			s.echo = append(s.echo, sel.Remote)
		case sel.Protocol == policy.TCP:
			key := servicePort{protoTCP, sel.Port}
			s.ports[key] = append(s.ports[key], sel.Remote)
		case sel.Protocol == policy.UDP:
			key := servicePort{protoUDP, sel.Port}
			s.ports[key] = append(s.ports[key], sel.Remote)
		}
	}
	return s
}

// frees says whether an entry belongs to the selection and can go: untracked packets would be
// neither translated nor helped, so entries with NAT or a helper stay.
func (s *selection) frees(e *entry) bool {
	if !s.group && len(s.echo) == 0 && len(s.ports) == 0 {
		return false
	}
	return s.holds(e) && !e.helped && !e.translated()
}

func (s *selection) holds(e *entry) bool {
	if s.group && e.orig.dst.isGroup() {
		return true
	}
	var remotes []netip.Prefix
	switch {
	case e.orig.proto == protoICMP && e.orig.icmpType == echoRequest,
		e.orig.proto == protoICMPv6 && e.orig.icmpType == echoRequestV6:
		remotes = s.echo
	case e.orig.proto == protoTCP || e.orig.proto == protoUDP:
		remotes = s.ports[servicePort{e.orig.proto, e.orig.dstPort}]
	}
	if len(remotes) == 0 || !withinAny(remotes, e.orig.src.netip()) {
		return false
	}
	// From an own address to an own address is loopback traffic, which selectors leave alone.
	return s.local(e.orig.dst.netip()) && !s.local(e.orig.src.netip())
}

// withinAny says whether one of the prefixes holds the address; the zero prefix holds every one.
func withinAny(prefixes []netip.Prefix, ip netip.Addr) bool {
	for _, p := range prefixes {
		if !p.IsValid() || p.Contains(ip) {
			return true
		}
	}
	return false
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
