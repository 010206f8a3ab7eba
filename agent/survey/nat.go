package survey

import (
	"net/netip"
	"slices"

	"go4.org/netipx"
	"golang.org/x/sys/unix"

	"ctguard/policy"
)

// touches says whether leaving s untracked would keep a translation from happening that should. Only the first
// packet of a flow comes to a chain of nat, and the answers are translated back by the entry.
func (e effect) touches(s policy.Selector, multicastRouter bool, here *addresses) bool {
	switch {
	case e.everything:
		return true
	case e.loopback || e.never():
		return false
	case s.Protocol == policy.All:
		return true
	case s.Group:
		return e.touchesGroups(multicastRouter)
	case s.Protocol == policy.ICMP:
		// Untracked are echo requests to this host and its replies. A reply is never the first packet
		// of a flow, so what leaves this host is not at stake.
		return e.hook != output && e.hook != postrouting &&
			(e.protocol(unix.IPPROTO_ICMP) || e.protocol(unix.IPPROTO_ICMPV6))
	}
	if !e.protocol(protocolNumber(s.Protocol)) {
		return false
	}
	// A flow whose source is translated may get any port of this host, to which its answers come.
	if e.hook == input || e.hook == postrouting {
		return true
	}
	first, last := s.Ports()
	return anyOf(e.ports, first, last) || e.sendsTo(s, here)
}

// sendsTo says whether a translation may send to s what came for another port or address: the answers of s need
// the entry to leave with that port and address again.
func (e effect) sendsTo(s policy.Selector, here *addresses) bool {
	// What output sends to this host itself goes by way of lo in both directions, where all stays tracked.
	if e.hook != prerouting || e.loopback {
		return false
	}
	if e.keepsPort && !e.masquerade {
		return false // its target is the port it matches
	}
	first, last := s.Ports()
	return anyOf(e.to, first, last) && !here.elsewhere(e.from, e.last)
}

// touchesGroups is touches for multicast and broadcast. What this host sends there has the address of
// the interface already, so masquerading changes only what it routes.
func (e effect) touchesGroups(multicastRouter bool) bool {
	return !e.local && !e.onlyTCP() && (!e.masquerade || multicastRouter)
}

// redirects says whether a translation may send what comes for s elsewhere, or to s what comes for others.
func (e effect) redirects(s policy.Selector, here *addresses) bool {
	return e.everything || e.hook == prerouting && e.touches(s, true, here)
}

// addresses knows which addresses are this host's. It asks once, when that first matters.
type addresses struct {
	read  func() ([]netip.Prefix, error)
	known bool
	list  []netip.Prefix
	err   error
}

// elsewhere says whether no address of a range is this host's, for certain.
func (a *addresses) elsewhere(from, last netip.Addr) bool {
	asked := netipx.IPRangeFrom(from, last)
	if !asked.IsValid() {
		return false
	}
	if !a.known {
		a.list, a.err = a.read()
		a.known = true
	}
	return a.err == nil && !slices.ContainsFunc(a.list, func(p netip.Prefix) bool {
		return asked.Overlaps(netipx.RangeOfPrefix(p))
	})
}
