package survey

import (
	"slices"

	"ctguard/policy"
	"golang.org/x/sys/unix"
)

// constraints is what is known for sure about the packets that come to some point of a rule. The zero value
// knows nothing: any packet can.
type constraints struct {
	protocols    []uint8 // IP protocol numbers; nil means any
	ports        []ports // destination ports, where the protocol has some; nil means any
	sources      []ports // source ports likewise
	local        bool    // sent to an address of this host, so neither multicast nor broadcast
	loopback     bool    // by way of lo, where nothing goes untracked
	byConnection bool    // some match before asked for something of the connection other than its marks
}

// ports is a range of ports, both ends included.
type ports struct{ first, last uint16 }

// protocol says whether a packet of that protocol can come.
func (c constraints) protocol(number uint8) bool {
	return c.protocols == nil || slices.Contains(c.protocols, number)
}

// never says whether no packet can come: what is known contradicts itself, or a set is empty.
func (c constraints) never() bool {
	none := func(list []ports) bool { return list != nil && len(list) == 0 }
	return none(c.ports) || none(c.sources) || c.protocols != nil && len(c.protocols) == 0
}

// onlyTCP says whether every packet is of TCP.
func (c constraints) onlyTCP() bool {
	return c.protocols != nil && !slices.ContainsFunc(c.protocols, func(n uint8) bool { return n != unix.IPPROTO_TCP })
}

// anyOf says whether one of the ports from first to last can be in a list.
func anyOf(list []ports, first, last uint16) bool {
	return list == nil || slices.ContainsFunc(list, func(r ports) bool { return r.first <= last && first <= r.last })
}

// and returns what is known where both c and d are.
func (c constraints) and(d constraints) constraints {
	both := constraints{
		protocols: c.protocols, ports: common(c.ports, d.ports), sources: common(c.sources, d.sources),
		local: c.local || d.local, loopback: c.loopback || d.loopback, byConnection: c.byConnection || d.byConnection,
	}
	if c.protocols == nil {
		both.protocols = d.protocols
	} else if d.protocols != nil {
		both.protocols = slices.DeleteFunc(slices.Clone(c.protocols), func(n uint8) bool { return !d.protocol(n) })
	}
	return both
}

// common returns the ports that are in both lists.
func common(a, b []ports) []ports {
	switch {
	case a == nil:
		return b
	case b == nil:
		return a
	}
	both := []ports{}
	for _, x := range a {
		for _, y := range b {
			if r := (ports{max(x.first, y.first), min(x.last, y.last)}); r.first <= r.last {
				both = append(both, r)
			}
		}
	}
	return both
}

// meets says whether packets of s can come to a point of a chain at a hook, be they requests or answers. On
// their way in s has its port as the destination, on their way out as the source.
func (c constraints) meets(s policy.Selector, hook hook, multicastRouter bool) bool {
	switch {
	case c.loopback || c.never():
		return false
	case s.Group:
		return !c.local && !c.onlyTCP() && (hook != forwarding || multicastRouter)
	case hook == forwarding:
		return false // what is forwarded is nobody's service here
	case s.Protocol == policy.All:
		return true
	case s.Protocol == policy.ICMP:
		return c.protocol(unix.IPPROTO_ICMP) || c.protocol(unix.IPPROTO_ICMPV6)
	case !c.protocol(protocolNumber(s.Protocol)):
		return false
	}
	first, last := s.Ports()
	if hook == output || hook == postrouting {
		return anyOf(c.sources, first, last)
	}
	return anyOf(c.ports, first, last)
}

func protocolNumber(p policy.Protocol) uint8 {
	if p == policy.UDP {
		return unix.IPPROTO_UDP
	}
	return unix.IPPROTO_TCP
}
