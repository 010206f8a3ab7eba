package lab

import (
	"fmt"
	"net/netip"
	"slices"

	"ctguard/cmd/ctlab/internal/ns"
	"ctguard/cmd/ctlab/internal/service"
)

// onewayRules are those of a router that knows that it doesn't see the answers: nothing depends on a
// connection's state but what is accepted sooner.
const onewayRules = `
table inet filter {
	chain forward {
		type filter hook forward priority filter; policy accept;
		ct state established,related accept
	}
}
`

// buildOneWay makes a router that sees what clients send and never the answers, as with direct server return or an
// asymmetric uplink:
//
//	[clients]  eth0 ── cli0 [protected] wan0 ── eth0 [servers]
//	[attacker] eth0 ── atk0 [         ]
//	[clients]  eth1 ────────────────────────── eth1 [servers]
func buildOneWay(s *site) error {
	if err := s.addAll(); err != nil {
		return err
	}
	servers, err := s.add("servers")
	if err != nil {
		return err
	}
	s.serving = []*ns.Namespace{servers}
	s.config = map[string]any{"profile": "nat-gateway"}
	s.clientTargets = addrs("192.0.2.0/24", 10, 1)
	s.clientAddrs = addrs("203.0.113.0/24", 11, 20)
	s.session = netip.MustParseAddr("203.0.113.99")
	s.backgroundFrom = insideUsers
	for _, port := range []uint16{443, service.HTTPPort} {
		s.backgroundTo = append(s.backgroundTo, netip.AddrPortFrom(s.clientTargets[0], port))
	}
	silent := addrs("192.0.2.0/24", 200, 4)
	s.near = side{dev: "eth0", gateway: mac(2, 1), sources4: insideAll, targets: s.clientTargets, silent: silent}
	if err := s.linkOneWay(servers, append(slices.Clone(s.clientTargets), silent...)); err != nil {
		return err
	}
	for _, n := range []*ns.Namespace{servers, s.protected} {
		if err := n.Sysctl(tuning); err != nil {
			return err
		}
	}
	// What is seen one way keeps its entry for this long. It is short, so that seconds of calm are an ordinary day.
	short := map[string]string{"net.ipv4.ip_forward": "1", "net.netfilter.nf_conntrack_tcp_timeout_syn_sent": "3",
		"net.netfilter.nf_conntrack_tcp_timeout_unacknowledged": "30"}
	if err := s.protected.Sysctl(short); err != nil {
		return fmt.Errorf("set the router up: %w", err)
	}
	if err := nft(servers, silentRules); err != nil {
		return err
	}
	return nft(s.protected, onewayRules)
}

func (s *site) linkOneWay(servers *ns.Namespace, serving []netip.Addr) error {
	end := func(n *ns.Namespace, dev string, link, side byte, as ...netip.Addr) ns.End {
		return ns.End{NS: n, Name: dev, MAC: hw(mac(link, side)), Addrs: onLink(as)}
	}
	direct, clients := addrs("198.51.100.0/24", 1, 2), append(slices.Clone(s.clientAddrs), s.session)
	for _, pair := range [][2]ns.End{
		{end(s.protected, "cli0", 1, 1, gwInside4), end(s.clients, "eth0", 1, 2, clients...)},
		{end(s.protected, "atk0", 2, 1), end(s.attacker, "eth0", 2, 2)},
		{end(s.protected, "wan0", 3, 1, gwOutside4), end(servers, "eth0", 3, 2, serving...)},
		{end(s.clients, "eth1", 4, 1, direct[0]), end(servers, "eth1", 4, 2, direct[1])},
	} {
		if err := ns.Pair(pair[0], pair[1]); err != nil {
			return err
		}
	}
	if err := s.clients.AddRoute(ns.Route{Dst: anywhere4, Via: gwInside4, Dev: "eth0"}); err != nil {
		return err
	}
	return servers.AddRoute(ns.Route{Dst: insideClients, Via: direct[0], Dev: "eth1", Src: s.clientTargets[0]})
}
