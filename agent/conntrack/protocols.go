package conntrack

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Protocols are the names that people use for IP protocol numbers; see protocols(5).
var Protocols = map[string]uint8{
	"icmp": unix.IPPROTO_ICMP, "tcp": unix.IPPROTO_TCP, "udp": unix.IPPROTO_UDP, "dccp": unix.IPPROTO_DCCP,
	"gre": unix.IPPROTO_GRE, "icmpv6": unix.IPPROTO_ICMPV6, "sctp": unix.IPPROTO_SCTP, "udplite": unix.IPPROTO_UDPLITE,
}

// ProtocolName returns the name of an IP protocol number, or the number.
func ProtocolName(number uint8) string {
	for name, n := range Protocols {
		if n == number {
			return name
		}
	}
	return fmt.Sprint(number)
}
