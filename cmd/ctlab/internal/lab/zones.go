package lab

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"ctguard/cmd/ctlab/internal/ns"
	"ctguard/cmd/ctlab/internal/service"
)

// zonesRules gives each tenant's interfaces a zone.
const zonesRules = `
table inet tenants {
	chain zones {
		type filter hook prerouting priority raw; policy accept;
		iifname { "cli0", "wan0" } ct zone set 1
		iifname { "atk0", "wan1" } ct zone set 2
	}
	chain forward {
		type filter hook forward priority filter; policy accept;
		ct state established,related accept
		ct state invalid drop
	}
}
`

// clientsZone is the zone of the tenant that floods nobody.
const clientsZone = 1

// sameAddresses are among those of the clients.
var sameAddresses = netip.MustParsePrefix("203.0.113.16/29")

// buildZones makes a router for two tenants with the same addresses, each with a routing table and a zone of its own:
//
//	[clients]  eth0 ── cli0 [protected] wan0 ── eth0 [servers]
//	[attacker] eth0 ── atk0 [         ] wan1 ── eth0 [others]
func buildZones(s *site) error {
	if err := s.addAll(); err != nil {
		return err
	}
	servers, err := s.add("servers")
	if err != nil {
		return err
	}
	others, err := s.add("others")
	if err != nil {
		return err
	}
	s.serving = []*ns.Namespace{servers, others}
	s.clientTargets = addrs("192.0.2.0/24", 10, 1)
	s.clientAddrs = addrs("203.0.113.0/24", 11, 20)
	s.session = netip.MustParseAddr("203.0.113.99")
	s.backgroundFrom, s.backgroundZone = insideUsers, clientsZone
	for _, port := range []uint16{443, service.HTTPPort} {
		s.backgroundTo = append(s.backgroundTo, netip.AddrPortFrom(s.clientTargets[0], port))
	}
	s.near = side{dev: "eth0", gateway: mac(2, 1), sources4: sameAddresses, targets: s.clientTargets}
	if err := s.linkZones(servers, others); err != nil {
		return err
	}
	for _, n := range s.serving {
		if err := n.Sysctl(tuning); err != nil {
			return err
		}
		if err := n.AddRoute(ns.Route{Dst: anywhere4, Via: gwOutside4, Dev: "eth0"}); err != nil {
			return err
		}
	}
	if err := s.clients.AddRoute(ns.Route{Dst: anywhere4, Via: gwInside4, Dev: "eth0"}); err != nil {
		return err
	}
	if err := s.protected.Sysctl(map[string]string{"net.ipv4.ip_forward": "1"}); err != nil {
		return fmt.Errorf("make the router forward: %w", err)
	}
	return nft(s.protected, zonesRules)
}

func (s *site) linkZones(servers, others *ns.Namespace) error {
	end := func(n *ns.Namespace, dev string, link, side byte, as ...netip.Addr) ns.End {
		return ns.End{NS: n, Name: dev, MAC: hw(mac(link, side)), Addrs: onLink(as)}
	}
	clients := append(slices.Clone(s.clientAddrs), s.session)
	for _, pair := range [][2]ns.End{
		{end(s.protected, "cli0", 1, 1, gwInside4), end(s.clients, "eth0", 1, 2, clients...)},
		{end(s.protected, "atk0", 2, 1), end(s.attacker, "eth0", 2, 2)},
		{end(s.protected, "wan0", 3, 1, gwOutside4), end(servers, "eth0", 3, 2, s.clientTargets...)},
		{end(s.protected, "wan1", 4, 1, gwOutside4), end(others, "eth0", 4, 2, s.clientTargets...)},
	} {
		if err := ns.Pair(pair[0], pair[1]); err != nil {
			return err
		}
	}
	// What comes from a tenant, or back to it, is routed by the tenant's table. The attacker's kernel answers to no name.
	routes := "neigh add 198.51.100.254 lladdr " + hw(mac(2, 2)).String() + " dev atk0 nud permanent\n" +
		"route add 203.0.113.0/24 dev cli0 table 1\nroute add 192.0.2.0/24 dev wan0 table 1\n" +
		"route add 203.0.113.0/24 via 198.51.100.254 dev atk0 onlink table 2\nroute add 192.0.2.0/24 dev wan1 table 2\n" +
		"rule add iif cli0 lookup 1\nrule add iif wan0 lookup 1\nrule add iif atk0 lookup 2\nrule add iif wan1 lookup 2"
	for line := range strings.Lines(routes) {
		if err := ip(s.protected, line); err != nil {
			return err
		}
	}
	return nil
}
