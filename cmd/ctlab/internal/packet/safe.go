package packet

import "net/netip"

// documentation is the address space reserved for examples and benchmarks (RFC
// 5737, RFC 2544, RFC 3849). The lab sends from and to nothing else.
var documentation = []netip.Prefix{
	netip.MustParsePrefix("192.0.2.0/24"),
	netip.MustParsePrefix("198.51.100.0/24"),
	netip.MustParsePrefix("203.0.113.0/24"),
	netip.MustParsePrefix("198.18.0.0/15"),
	netip.MustParsePrefix("2001:db8::/32"),
}

// Documentation reports whether all of p lies in the address space reserved for
// documentation and benchmarks.
func Documentation(p netip.Prefix) bool {
	for _, d := range documentation {
		if d.Bits() <= p.Bits() && d.Contains(p.Addr()) {
			return true
		}
	}
	return false
}
