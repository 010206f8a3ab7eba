package lab

import (
	"net/netip"
	"slices"

	"ctguard/cmd/ctlab/internal/ns"
	"ctguard/cmd/ctlab/internal/service"
)

// serverRules is what a careful administrator has on a server, with a range of ports open for a
// media or game server that uses few of them at a time.
const serverRules = `
table inet filter {
	chain input {
		type filter hook input priority filter; policy drop;
		ct state established,related accept
		ct state invalid drop
		iif lo accept
		meta l4proto { icmp, ipv6-icmp } accept
		tcp dport { 22, 80, 7000, 7001, 7002 } accept
		udp dport { 5353, 10000-20000 } accept
	}
	chain forward {
		type filter hook forward priority filter; policy drop;
	}
}
`

// The ports that the rules above leave open and that no service of the lab is on.
const (
	unusedPort  = 10000
	unusedPorts = 10001
)

// tuning lets the host's own limits not be what gives way first.
var tuning = map[string]string{
	"net.core.somaxconn":           "65535",
	"net.ipv4.tcp_max_syn_backlog": "65535",
}

// buildShared makes the server again, but all clients have one address, as behind a carrier's NAT.
func buildShared(s *site) error {
	s.clientAddrs = addrs("203.0.113.0/24", 11, 1)
	return buildServer(s)
}

// buildBalanced makes the server again, but all clients come from two load balancers.
func buildBalanced(s *site) error {
	s.clientAddrs = addrs("203.0.113.0/24", 11, 2)
	return buildServer(s)
}

// buildServer makes
//
//	[attacker] eth0 ── atk0 [protected] cli0 ── eth0 [clients]
//
// The attacker's kernel has no address and no route, so it answers nothing by itself.
func buildServer(s *site) error {
	if err := s.addAll(); err != nil {
		return err
	}
	s.serving = []*ns.Namespace{s.protected}

	host4, host6 := netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("2001:db8:2::1")
	s.clientTargets = []netip.Addr{host4, host6}
	if s.clientAddrs == nil {
		s.clientAddrs = slices.Concat(addrs("203.0.113.0/24", 11, 14), addrs("2001:db8:2::/64", 11, 6))
	}
	s.session = netip.MustParseAddr("203.0.113.99")

	if err := s.linkServer(host4, host6); err != nil {
		return err
	}
	s.backgroundFrom = netip.MustParsePrefix("198.19.0.0/16")
	for _, port := range []uint16{service.HTTPPort, service.HTTPPort, service.LinePort, 443} {
		s.backgroundTo = append(s.backgroundTo, netip.AddrPortFrom(host4, port))
	}
	if err := s.protected.Sysctl(tuning); err != nil {
		return err
	}
	return nft(s.protected, serverRules)
}

func (s *site) linkServer(host4, host6 netip.Addr) error {
	clients := onLink(append(slices.Clone(s.clientAddrs), s.session))
	err := ns.Pair(
		ns.End{NS: s.protected, Name: "cli0", MAC: hw(mac(1, 1)), Addrs: onLink(s.clientTargets)},
		ns.End{NS: s.clients, Name: "eth0", MAC: hw(mac(1, 2)), Addrs: clients},
	)
	if err != nil {
		return err
	}
	near := []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8:1::1")}
	err = ns.Pair(
		ns.End{NS: s.protected, Name: "atk0", MAC: hw(mac(2, 1)), Addrs: onLink(near)},
		ns.End{NS: s.attacker, Name: "eth0", MAC: hw(mac(2, 2))},
	)
	if err != nil {
		return err
	}
	s.near = side{
		dev: "eth0", gateway: mac(2, 1), targets: s.clientTargets,
		sources4: netip.MustParsePrefix("198.18.0.0/16"), sources6: netip.MustParsePrefix("2001:db8:a000::/48"),
	}
	// Replies leave through one gateway whose hardware address is fixed, and with the
	// address that was asked: an echo from another one would be another flow.
	for _, r := range []ns.Route{
		{Dst: s.near.sources4, Via: netip.MustParseAddr("192.0.2.2"), Src: host4},
		{Dst: s.near.sources6, Via: netip.MustParseAddr("2001:db8:1::2"), Src: host6},
	} {
		r.Dev, r.GatewayMAC = "atk0", hw(mac(2, 2))
		if err := s.protected.AddRoute(r); err != nil {
			return err
		}
	}
	return nil
}
