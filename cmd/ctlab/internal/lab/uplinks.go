package lab

import (
	"net/netip"
	"strings"

	"ctguard/cmd/ctlab/internal/ns"
)

// uplinksRules answer what came by the second uplink by the second uplink: a mark on the connection says so.
const uplinksRules = `
table inet uplinks {
	chain pre {
		type filter hook prerouting priority mangle; policy accept;
		iifname "up1" ct state new ct mark set 2
		meta mark set ct mark
	}
	chain out {
		type route hook output priority mangle; policy accept;
		meta mark set ct mark
	}
}
`

// buildUplinks makes the server again, with another uplink:
//
//	[attacker] eth0 ── atk0 [protected] cli0 ── eth0 [clients]
//	                        [         ] up1  ── eth0 [second]
//
// The way to those behind the second uplink is in a table for the mark only; all others' is the first.
func buildUplinks(s *site) error {
	if err := buildServer(s); err != nil {
		return err
	}
	second, err := s.add("second")
	if err != nil {
		return err
	}
	host, clients := netip.MustParseAddr("198.51.100.1"), addrs("198.51.100.0/24", 11, 10)
	s.parties = []party{{"second uplink", second, clients, host, 100, 30, 20, 99.5}}
	err = ns.Pair(
		ns.End{NS: s.protected, Name: "up1", MAC: hw(mac(3, 1)), Addrs: onLink([]netip.Addr{host})},
		ns.End{NS: second, Name: "eth0", MAC: hw(mac(3, 2)), Addrs: onLink(clients)},
	)
	if err != nil {
		return err
	}
	routes := "route add 198.51.100.0/24 dev up1 table 102\nrule add fwmark 2 lookup 102\n" +
		"route del 198.51.100.0/24 dev up1\nroute add default via 203.0.113.254 dev cli0"
	for line := range strings.Lines(routes) {
		if err := ip(s.protected, line); err != nil {
			return err
		}
	}
	return nft(s.protected, uplinksRules)
}
