package lab

import (
	"net/netip"

	"ctguard/cmd/ctlab/internal/ns"
)

// buildOverlay makes the server again, and another host that asks it by way of a tunnel. Not every kernel has VXLAN, so
// the tunnel is its packets alone: questions go to the tunnel's port from ports of their own, and so do the answers.
// Conntrack sees flows that nobody answers, as with the real one.
//
//	[node] eth0 ── nod0 [protected]
func buildOverlay(s *site) error {
	s.overlay = true
	if err := buildServer(s); err != nil {
		return err
	}
	node, err := s.add("node")
	if err != nil {
		return err
	}
	here, there := netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("198.51.100.2")
	err = ns.Pair(ns.End{NS: s.protected, Name: "nod0", MAC: hw(mac(3, 1)), Addrs: onLink([]netip.Addr{here})},
		ns.End{NS: node, Name: "eth0", MAC: hw(mac(3, 2)), Addrs: onLink([]netip.Addr{there})})
	if err != nil {
		return err
	}
	s.parties = []party{{name: "node", in: node, from: []netip.Addr{there}, to: here, http: 20, udp: 100, lasting: 10,
		accepted: 99.5, overlay: true}}
	return nft(s.protected, "add rule inet filter input udp dport 4789 accept")
}
