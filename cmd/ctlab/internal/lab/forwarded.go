package lab

import (
	"fmt"
	"net/netip"
	"os/exec"
	"slices"
	"strings"

	"ctguard/cmd/ctlab/internal/ns"
	"ctguard/cmd/ctlab/internal/service"
)

// What lets the services in: their address and port, or that they were translated.
const (
	openedByPort = `iifname "wan0" ip daddr 192.0.2.10 tcp dport { 22, 80, 7000, 7001, 7002 } accept
		iifname "wan0" ip daddr 192.0.2.10 udp dport 5353 accept
		iifname "wan0" ip6 daddr 2001:db8:3::10 tcp dport { 22, 80, 7000, 7001, 7002 } accept
		iifname "wan0" ip6 daddr 2001:db8:3::10 udp dport 5353 accept`
	openedByState = `ct status dnat accept`
	openedToAll   = `iifname "wan0" oifname "lan0" accept`
)

// forwardRules is what a gateway has that lets services in to a host behind it.
const forwardRules = `
table inet filter {
	chain input {
		type filter hook input priority filter; policy drop;
		ct state established,related accept
		iif lo accept
		meta l4proto { icmp, ipv6-icmp } accept
	}
	chain forward {
		type filter hook forward priority filter; policy drop;
		ct state established,related accept
		ct state invalid drop
		%s
		iifname "lan0" oifname "wan0" accept
	}
}
`

// forwardedNAT is what a gateway has whose services have its own address.
const forwardedNAT = `
table inet nat {
	chain prerouting {
		type nat hook prerouting priority dstnat; policy accept;
		iifname "wan0" ip daddr 203.0.113.1 tcp dport { 22, 80, 7000, 7001, 7002 } dnat ip to 192.0.2.10
		iifname "wan0" ip daddr 203.0.113.1 udp dport 5353 dnat ip to 192.0.2.10
		iifname "wan0" ip6 daddr 2001:db8:2::1 tcp dport { 22, 80, 7000, 7001, 7002 } dnat ip6 to 2001:db8:3::10
		iifname "wan0" ip6 daddr 2001:db8:2::1 udp dport 5353 dnat ip6 to 2001:db8:3::10
	}
	chain postrouting {
		type nat hook postrouting priority srcnat; policy accept;
		oifname "wan0" masquerade
	}
}
`

// forwardedBy builds a gateway with a filter that opens its services in one way.
func forwardedBy(opened string) func(*site) error {
	return func(s *site) error { return buildForwarded(s, fmt.Sprintf(forwardRules, opened)+forwardedNAT, true) }
}

// routedBy builds a router whose filter opens services that have addresses of their own.
func routedBy(opened string) func(*site) error {
	return func(s *site) error { return buildForwarded(s, fmt.Sprintf(forwardRules, opened), false) }
}

// buildForwarded makes a gateway with one uplink, a bridge, behind which everybody is, and the services inside:
//
//	[attacker] eth0 ── atk0 [           ]
//	                        wan0 [protected] lan0 ── eth0 [inside]
//	[clients]  eth0 ── cli0 [           ]
func buildForwarded(s *site, rules string, translated bool) error {
	if err := s.addAll(); err != nil {
		return err
	}
	inner, err := s.add("inside")
	if err != nil {
		return err
	}
	s.serving = []*ns.Namespace{inner}
	gateway := []netip.Addr{netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("2001:db8:2::1")}
	servers := []netip.Addr{netip.MustParseAddr("192.0.2.10"), netip.MustParseAddr("2001:db8:3::10")}
	s.clientTargets = servers
	if translated {
		s.clientTargets = gateway
		s.inside = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}
		s.outer = []link{{s.clients, "eth0"}, {s.attacker, "eth0"}}
	}
	s.clientAddrs = slices.Concat(addrs("203.0.113.0/24", 11, 14), addrs("2001:db8:2::/64", 11, 6))
	s.session = netip.MustParseAddr("203.0.113.99")
	s.backgroundFrom = netip.MustParsePrefix("198.19.0.0/16")
	for _, port := range []uint16{service.HTTPPort, service.LinePort, 443} {
		s.backgroundTo = append(s.backgroundTo, netip.AddrPortFrom(netip.MustParseAddr("203.0.113.2"), port))
	}
	s.near = side{
		dev: "eth0", gateway: mac(2, 1), targets: s.clientTargets,
		sources4: netip.MustParsePrefix("198.18.0.0/16"), sources6: netip.MustParsePrefix("2001:db8:a000::/48"),
	}
	if err := s.linkForwarded(inner, gateway, servers); err != nil {
		return err
	}
	if err := inner.Sysctl(tuning); err != nil {
		return err
	}
	err = s.protected.Sysctl(map[string]string{"net.ipv4.ip_forward": "1", "net.ipv6.conf.all.forwarding": "1"})
	if err != nil {
		return fmt.Errorf("make the gateway forward: %w", err)
	}
	return nft(s.protected, rules)
}

func (s *site) linkForwarded(inner *ns.Namespace, gateway, servers []netip.Addr) error {
	inside4, inside6 := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8:3::1")
	clients := onLink(append(slices.Clone(s.clientAddrs), s.session))
	for _, pair := range [][2]ns.End{
		{{NS: s.protected, Name: "cli0", MAC: hw(mac(1, 1))},
			{NS: s.clients, Name: "eth0", MAC: hw(mac(1, 2)), Addrs: clients}},
		{{NS: s.protected, Name: "atk0", MAC: hw(mac(3, 1))}, {NS: s.attacker, Name: "eth0", MAC: hw(mac(2, 2))}},
		{{NS: s.protected, Name: "lan0", MAC: hw(mac(4, 1)), Addrs: onLink([]netip.Addr{inside4, inside6})},
			{NS: inner, Name: "eth0", MAC: hw(mac(4, 2)), Addrs: onLink(servers)}},
	} {
		if err := ns.Pair(pair[0], pair[1]); err != nil {
			return err
		}
	}
	bridge := []string{"link add name wan0 address " + hw(s.near.gateway).String() + " type bridge",
		"link set cli0 master wan0", "link set atk0 master wan0", "link set wan0 up"}
	for _, p := range onLink(gateway) {
		nodad := strings.Repeat(" nodad", strings.Count(p.String(), "::"))
		bridge = append(bridge, "address add "+p.String()+" dev wan0"+nodad)
	}
	for _, line := range bridge {
		if err := ip(s.protected, line); err != nil {
			return err
		}
	}
	for _, r := range []struct {
		in *ns.Namespace
		ns.Route
	}{
		{s.protected, ns.Route{Dst: s.near.sources4, Via: netip.MustParseAddr("203.0.113.254"), Dev: "wan0",
			GatewayMAC: hw(mac(2, 2))}},
		{s.protected, ns.Route{Dst: s.near.sources6, Via: netip.MustParseAddr("2001:db8:2::fe"), Dev: "wan0",
			GatewayMAC: hw(mac(2, 2))}},
		{s.clients, ns.Route{Dst: netip.MustParsePrefix("192.0.2.0/24"), Via: gateway[0], Dev: "eth0"}},
		{s.clients, ns.Route{Dst: netip.MustParsePrefix("2001:db8:3::/64"), Via: gateway[1], Dev: "eth0"}},
		{inner, ns.Route{Dst: anywhere4, Via: inside4, Dev: "eth0"}},
		{inner, ns.Route{Dst: anywhere6, Via: inside6, Dev: "eth0"}},
	} {
		if err := r.in.AddRoute(r.Route); err != nil {
			return err
		}
	}
	return nil
}

// ip runs the program ip in a namespace.
func ip(n *ns.Namespace, args string) error {
	var out strings.Builder
	cmd := exec.Command("ip", strings.Fields(args)...)
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := n.Start(cmd); err != nil {
		return fmt.Errorf("start ip in %s: %w", n.Name(), err)
	}
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("ip %s in %s: %w: %s", args, n.Name(), err, strings.TrimSpace(out.String()))
	}
	return nil
}
