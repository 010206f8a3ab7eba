package lab

import (
	"net/netip"

	"ctguard/cmd/ctlab/internal/ns"
)

// lookups is how many questions a second a busy resolver asks.
const lookups = 8000

// dnsRules has the lab's echo answer for a DNS server. They rewrite without conntrack, whose table would be full.
const dnsRules = `
table inet dns {
	chain in {
		type filter hook prerouting priority raw; policy accept;
		udp dport 53 udp dport set 5353
	}
	chain out {
		type filter hook output priority raw; policy accept;
		udp sport 5353 udp sport set 53
	}
}
`

// buildResolver makes the server again, which asks DNS servers itself from the attack's begin on: each question has a
// port of its own, and is over with its answer.
//
//	[dns] eth0 ── dns0 [protected]
func buildResolver(s *site) error {
	if err := buildServer(s); err != nil {
		return err
	}
	dns, err := s.add("dns")
	if err != nil {
		return err
	}
	s.serving = append(s.serving, dns)
	here, there := netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("198.51.100.53")
	err = ns.Pair(ns.End{NS: s.protected, Name: "dns0", MAC: hw(mac(3, 1)), Addrs: onLink([]netip.Addr{here})},
		ns.End{NS: dns, Name: "eth0", MAC: hw(mac(3, 2)), Addrs: onLink([]netip.Addr{there})})
	if err != nil {
		return err
	}
	s.parties = []party{{name: "resolver", in: s.protected, from: []netip.Addr{here}, to: there, udp: lookups, udpPort: 53,
		accepted: 99.5, late: true}}
	return nft(dns, dnsRules)
}
