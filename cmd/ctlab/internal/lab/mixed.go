package lab

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"ctguard/cmd/ctlab/internal/ns"
	"ctguard/cmd/ctlab/internal/service"
)

// mixedRules is what a server has that runs containers on a bridge, as their programs write it.
const mixedRules = `
table inet filter {
	chain input {
		type filter hook input priority filter; policy drop;
		ct state established,related accept
		ct state invalid drop
		iif lo accept
		meta l4proto { icmp, ipv6-icmp } accept
		tcp dport { 22, 80, 7000, 7001, 7002 } accept
		udp dport 5353 accept
	}
	chain forward {
		type filter hook forward priority filter; policy drop;
		ct state established,related accept
		iifname "br0" oifname "wan0" accept
	}
}
table ip nat {
	chain postrouting {
		type nat hook postrouting priority srcnat; policy accept;
		ip saddr 198.18.0.0/24 oifname != "br0" masquerade
	}
}
`

// mixedSilent makes some outside addresses swallow what comes.
const mixedSilent = `
table inet silent {
	chain input {
		type filter hook input priority filter; policy accept;
		ip daddr 203.0.113.220-203.0.113.223 drop
	}
}
`

// The containers: the first scans, behind the second one are many users, of whom one scans, and the others have nothing
// to do with it.
var (
	scanner    = netip.MustParseAddr("198.18.0.1")
	sharedHost = netip.MustParseAddr("198.18.0.2")
	scanners   = netip.MustParsePrefix("198.18.0.0/30") // from the second address on
)

// party is others than the host's clients who ask for something meanwhile: it is measured what they get, too.
type party struct {
	name     string
	in       *ns.Namespace
	from     []netip.Addr
	to       netip.Addr
	http     int // requests a second
	udp      int
	lasting  int
	accepted float64 // percent of its requests that must be served
	udpPort  uint16  // where its questions go, if not to the lab's own port
	overlay  bool    // its questions go through a tunnel
	late     bool    // it begins with the attack
}

// buildMixed makes a host that serves, and masquerades a bridge with containers:
//
//	[containers] eth0 ── con0 [               ]
//	                          br0 [protected] wan0 ── eth0 [clients]
//	[attacker]   eth0 ── atk0 [               ]
//
// The attacker's namespace is the container that scans, and the one with many users behind it. Outside are the host's
// clients, and the servers that containers ask.
func buildMixed(s *site) error {
	if err := s.addAll(); err != nil {
		return err
	}
	containers, err := s.add("containers")
	if err != nil {
		return err
	}
	s.serving = []*ns.Namespace{s.protected, s.clients}
	s.inside = []netip.Prefix{netip.MustParsePrefix("198.18.0.0/24")}
	s.outer = []link{{s.clients, "eth0"}}
	host4, host6 := netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("2001:db8:2::1")
	s.clientTargets = []netip.Addr{host4, host6}
	s.clientAddrs = slices.Concat(addrs("203.0.113.0/24", 11, 14), addrs("2001:db8:2::/64", 11, 6))
	s.session = netip.MustParseAddr("203.0.113.99")
	s.backgroundFrom = netip.MustParsePrefix("198.19.0.0/16")
	for _, port := range []uint16{service.HTTPPort, service.LinePort, 443} {
		s.backgroundTo = append(s.backgroundTo, netip.AddrPortFrom(host4, port))
	}
	server := netip.MustParseAddr("203.0.113.200")
	silent := addrs("203.0.113.0/24", 220, 4)
	s.near = side{dev: "eth0", gateway: mac(5, 1), sources4: scanners, targets: []netip.Addr{server}, silent: silent}
	others := addrs("198.18.0.0/24", 10, 10)
	s.parties = []party{
		{name: "containers", in: containers, from: others, to: server, http: 60, udp: 20, lasting: 10, accepted: 99.5},
		{name: "neighbours", in: s.attacker, from: []netip.Addr{sharedHost}, to: server, http: 30, udp: 10, lasting: 10,
			accepted: 99.5},
		{name: "scanner", in: s.attacker, from: []netip.Addr{scanner}, to: server, http: 30, udp: 10, lasting: 10,
			accepted: 95},
	}
	// The server's address is the first: the UDP echo answers from that one.
	outside := onLink(slices.Concat([]netip.Addr{server}, s.clientAddrs, []netip.Addr{s.session}, silent))
	if err := s.linkMixed(containers, outside, onLink(others)); err != nil {
		return err
	}
	for _, n := range s.serving {
		if err := n.Sysctl(tuning); err != nil {
			return err
		}
	}
	if err := s.protected.Sysctl(map[string]string{"net.ipv4.ip_forward": "1"}); err != nil {
		return fmt.Errorf("make the host forward: %w", err)
	}
	if err := nft(s.clients, mixedSilent); err != nil {
		return err
	}
	return nft(s.protected, mixedRules)
}

func (s *site) linkMixed(containers *ns.Namespace, outside, others []netip.Prefix) error {
	for _, pair := range [][2]ns.End{
		{{NS: s.protected, Name: "wan0", MAC: hw(mac(1, 1)), Addrs: onLink(s.clientTargets)},
			{NS: s.clients, Name: "eth0", MAC: hw(mac(1, 2)), Addrs: outside}},
		{{NS: s.protected, Name: "atk0", MAC: hw(mac(2, 1))},
			{NS: s.attacker, Name: "eth0", MAC: hw(mac(2, 2)), Addrs: onLink([]netip.Addr{scanner, sharedHost})}},
		{{NS: s.protected, Name: "con0", MAC: hw(mac(3, 1))},
			{NS: containers, Name: "eth0", MAC: hw(mac(3, 2)), Addrs: others}},
	} {
		if err := ns.Pair(pair[0], pair[1]); err != nil {
			return err
		}
	}
	bridge := "link add name br0 address " + hw(mac(5, 1)).String() + " type bridge\nlink set atk0 master br0\n" +
		"link set con0 master br0\nlink set br0 up\naddress add 198.18.0.254/24 dev br0"
	for line := range strings.Lines(bridge) {
		if err := ip(s.protected, line); err != nil {
			return err
		}
	}
	gateway, router := netip.MustParseAddr("198.18.0.254"), netip.MustParseAddr("203.0.113.254")
	for _, r := range []struct {
		in *ns.Namespace
		ns.Route
	}{
		// The ordinary users of the background are somewhere out there, where nobody answers for them.
		{s.protected, ns.Route{Dst: anywhere4, Via: router, Dev: "wan0", GatewayMAC: hw(mac(1, 9))}},
		{s.attacker, ns.Route{Dst: anywhere4, Via: gateway, Dev: "eth0"}},
		{containers, ns.Route{Dst: anywhere4, Via: gateway, Dev: "eth0"}},
	} {
		if err := r.in.AddRoute(r.Route); err != nil {
			return err
		}
	}
	return nil
}
