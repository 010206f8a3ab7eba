package policy

import (
	"cmp"
	"fmt"
	"slices"
)

// udpTimeout is the kernel's default of nf_conntrack_udp_timeout, in seconds.
const udpTimeout = 30

// IP protocol numbers that decisions depend on; everything else has them from golang.org/x/sys/unix, which this package
// does not import.
const (
	icmp   = 1
	tcp    = 6
	udp    = 17
	icmpv6 = 58
)

// FlowClass is what the packets of a flood have in common.
type FlowClass struct {
	Protocol uint8  // IP protocol number
	Port     uint16 // destination port; 0 for protocols without ports
}

// compare orders classes for reports.
func (c FlowClass) compare(d FlowClass) int {
	return cmp.Or(cmp.Compare(c.Protocol, d.Protocol), cmp.Compare(c.Port, d.Port))
}

// String returns the class as reports write it.
func (c FlowClass) String() string {
	switch c.Protocol {
	case tcp:
		return fmt.Sprintf("tcp/%d", c.Port)
	case udp:
		return fmt.Sprintf("udp/%d", c.Port)
	}
	return fmt.Sprintf("protocol %d", c.Protocol)
}

// enoughSeen is how many entries of a class a sample must hold for the class to be judged.
const enoughSeen = 200

// classCount is one class of a census.
type classCount struct {
	class            FlowClass
	entries, replied int // of those that the scan saw
}

// classes returns the classes of a census: TCP and UDP by destination port, other protocols whole.
func classes(c *Census) []classCount {
	var list []classCount
	for _, p := range c.Ports {
		list = append(list, classCount{FlowClass{p.Protocol, p.Port}, p.Entries, p.Replied})
	}
	for protocol, n := range c.Protocols {
		if protocol != tcp && protocol != udp {
			list = append(list, classCount{FlowClass{Protocol: protocol}, n, c.ProtocolsReplied[protocol]})
		}
	}
	slices.SortFunc(list, func(x, y classCount) int { return x.class.compare(y.class) })
	return list
}
