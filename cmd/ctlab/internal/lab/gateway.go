package lab

import (
	"fmt"
	"net/netip"
	"slices"

	"ctguard/cmd/ctlab/internal/ns"
	"ctguard/cmd/ctlab/internal/service"
)

// forwardedPort of the gateway leads to a server inside.
const forwardedPort = 8080

// gatewayRules is what OpenWrt gives a home or an office by default: it forwards INVALID packets,
// which no NAT touches, and answers a stranger with a reset. So a connection that the gateway has
// forgotten shows: as an inside address on the outside, or as a reset when the server speaks first.
const gatewayRules = `
table inet filter {
	chain input {
		type filter hook input priority filter; policy drop;
		ct state established,related accept
		iif lo accept
		meta l4proto { icmp, ipv6-icmp } accept
		iifname "cli0" tcp dport 22 accept
		iifname { "wan0", "wan1" } meta l4proto tcp reject with tcp reset
	}
	chain forward {
		type filter hook forward priority filter; policy drop;
		ct state established,related accept
		iifname { "cli0", "atk0" } oifname "wan0" accept
		ct status dnat accept
	}
}
table ip nat {
	chain prerouting {
		type nat hook prerouting priority dstnat; policy accept;
		iifname "wan1" tcp dport 8080 dnat to 203.0.113.50:80
	}
	chain postrouting {
		type nat hook postrouting priority srcnat; policy accept;
		oifname { "wan0", "wan1" } masquerade
	}
}
`

// silentRules make some outside addresses swallow what comes, as most of the internet
// does: an answer of any kind would free the entry again.
const silentRules = `
table inet silent {
	chain input {
		type filter hook input priority filter; policy accept;
		ip daddr 192.0.2.200-192.0.2.203 drop
		ip6 daddr 2001:db8:3::200 drop
	}
}
`

// The gateway's addresses. The inside is a network of clients and one of everybody
// else, the attackers among them; the outside is a network of servers, and a
// second uplink where the forwarded port is.
var (
	gwInside4  = netip.MustParseAddr("203.0.113.1")
	gwInside6  = netip.MustParseAddr("2001:db8:2::1")
	gwOutside4 = netip.MustParseAddr("192.0.2.1")
	gwOutside6 = netip.MustParseAddr("2001:db8:3::1")
	gwUplink   = netip.MustParseAddr("198.51.100.1")
	insideHost = netip.MustParseAddr("203.0.113.50")
	// Who is inside: the clients, the attackers, everybody else.
	insideClients = netip.MustParsePrefix("203.0.113.0/24")
	insideAll     = netip.MustParsePrefix("198.18.0.0/16")
	outsideAll    = netip.MustParsePrefix("198.19.128.0/17")
	insideUsers   = netip.MustParsePrefix("198.19.0.0/17")
	insideAll6    = netip.MustParsePrefix("2001:db8:a000::/48")
	insideUser6   = netip.MustParsePrefix("2001:db8:a000:7::/64")
	anywhere6     = netip.MustParsePrefix("::/0")
	anywhere4     = netip.MustParsePrefix("0.0.0.0/0")
)

// buildGateway makes a gateway that masquerades IPv4 and forwards IPv6 as it is:
//
//	[clients]  eth0 ── cli0 [protected] wan0 ── eth0 [wan]
//	[attacker] eth0 ── atk0 [         ] wan1 ── eth1 [attacker]
//
// Services run in wan, for the clients, and in the clients' namespace, as the
// inside server behind the forwarded port.
func buildGateway(s *site) error {
	if err := s.addAll(); err != nil {
		return err
	}
	wan, err := s.add("wan")
	if err != nil {
		return err
	}
	s.serving = []*ns.Namespace{wan, s.clients}
	s.inside = []netip.Prefix{insideClients, insideAll, insideUsers}
	s.outer = []link{{wan, "eth0"}, {s.attacker, "eth1"}}

	silent := append(addrs("192.0.2.0/24", 200, 4), netip.MustParseAddr("2001:db8:3::200"))
	servers := addrs("192.0.2.0/24", 10, 20)
	server6 := netip.MustParseAddr("2001:db8:3::10")
	s.clientTargets = []netip.Addr{servers[0], server6}
	s.clientAddrs = slices.Concat(addrs("203.0.113.0/24", 11, 14), addrs("2001:db8:2::/64", 11, 6))
	s.session = netip.MustParseAddr("203.0.113.99")
	s.backgroundFrom, s.masquerade = insideUsers, gwOutside4
	for i, a := range servers {
		s.backgroundTo = append(s.backgroundTo, netip.AddrPortFrom(a, []uint16{443, service.HTTPPort}[i%2]))
	}
	s.near = side{
		dev: "eth0", gateway: mac(2, 1), sources4: insideAll, sources6: insideAll6,
		targets: append(slices.Clone(servers), server6), silent: silent,
	}
	s.far = side{dev: "eth1", gateway: mac(4, 1), sources4: outsideAll, targets: []netip.Addr{gwUplink}}
	if err := s.linkGateway(wan, slices.Concat(servers, silent, []netip.Addr{server6})); err != nil {
		return err
	}
	if err := s.routeGateway(wan); err != nil {
		return err
	}
	for _, n := range s.serving {
		if err := n.Sysctl(tuning); err != nil {
			return err
		}
	}
	err = s.protected.Sysctl(map[string]string{"net.ipv4.ip_forward": "1", "net.ipv6.conf.all.forwarding": "1"})
	if err != nil {
		return fmt.Errorf("make the gateway forward: %w", err)
	}
	if err := nft(wan, silentRules); err != nil {
		return err
	}
	return nft(s.protected, gatewayRules)
}

func (s *site) linkGateway(wan *ns.Namespace, servers []netip.Addr) error {
	gw := func(dev string, link byte, as ...netip.Addr) ns.End {
		return ns.End{NS: s.protected, Name: dev, MAC: hw(mac(link, 1)), Addrs: onLink(as)}
	}
	far := func(n *ns.Namespace, dev string, link byte, as ...netip.Addr) ns.End {
		return ns.End{NS: n, Name: dev, MAC: hw(mac(link, 2)), Addrs: onLink(as)}
	}
	clients := append(slices.Clone(s.clientAddrs), s.session, insideHost)
	for _, pair := range [][2]ns.End{
		{gw("cli0", 1, gwInside4, gwInside6), far(s.clients, "eth0", 1, clients...)},
		{gw("atk0", 2), far(s.attacker, "eth0", 2)},
		{gw("wan0", 3, gwOutside4, gwOutside6), far(wan, "eth0", 3, servers...)},
		{gw("wan1", 4, gwUplink), far(s.attacker, "eth1", 4)},
	} {
		if err := ns.Pair(pair[0], pair[1]); err != nil {
			return err
		}
	}
	return nil
}

func (s *site) routeGateway(wan *ns.Namespace) error {
	for _, r := range []struct {
		in *ns.Namespace
		ns.Route
	}{
		{s.protected, ns.Route{Dst: insideAll, Via: netip.MustParseAddr("192.0.2.254"), Dev: "atk0",
			GatewayMAC: hw(mac(2, 2))}},
		{s.protected, ns.Route{Dst: insideAll6, Via: netip.MustParseAddr("2001:db8:1::2"), Dev: "atk0",
			GatewayMAC: hw(mac(2, 2))}},
		{s.protected, ns.Route{Dst: outsideAll, Via: netip.MustParseAddr("198.51.100.2"), Dev: "wan1",
			GatewayMAC: hw(mac(4, 2))}},
		{s.clients, ns.Route{Dst: anywhere4, Via: gwInside4, Dev: "eth0"}},
		{s.clients, ns.Route{Dst: anywhere6, Via: gwInside6, Dev: "eth0"}},
		{wan, ns.Route{Dst: anywhere6, Via: gwOutside6, Dev: "eth0"}},
	} {
		if err := r.in.AddRoute(r.Route); err != nil {
			return err
		}
	}
	return nil
}
