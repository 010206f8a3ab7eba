package conntrack

import (
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"sync"

	"golang.org/x/sys/unix"

	"ctguard/nft/throwaway"
)

// Capabilities is what this kernel can do beyond what every kernel can. Everything works without
// them, only slower.
type Capabilities struct {
	FilteredDump Families // sends the entries of one source only: Linux 5.8
}

// Families says for which family a capability does what it should. The kernel's filter compares IPv6
// addresses the wrong way round (ctnetlink_filter_match_tuple in
// net/netfilter/nf_conntrack_netlink.c, from its first version to Linux 6.18 at least): it takes
// every source but the one that was asked for. So does the filter of a flush (merged in 2024), and kernels that do not
// know that one flush everything: ctguard flushes nothing, a filtered dump with deletions beside it is as fast.
type Families struct{ IPv4, IPv6 bool }

// of says whether f covers the family of an address.
func (f Families) of(ip netip.Addr) bool {
	if ip.Unmap().Is4() {
		return f.IPv4
	}
	return f.IPv6
}

// Missing names what c lacks and what is done instead, for an operator to read.
func (c Capabilities) Missing() []string {
	var missing []string
	name := func(has bool, what, instead string) {
		if !has {
			missing = append(missing, what+": "+instead)
		}
	}
	const readsAll = "evicting few sources reads the whole table"
	name(c.FilteredDump.IPv4, "filtered dump of an IPv4 source", readsAll)
	name(c.FilteredDump.IPv6, "filtered dump of an IPv6 source", readsAll)
	return missing
}

// probing is the probe that is under way or has ended; nil before the first.
var probing struct {
	sync.Mutex
	wait func() (Capabilities, error)
}

// StartProbe begins to probe, unless somebody has, and returns once that needs no CAP_SYS_ADMIN any more.
func StartProbe() { _, _ = startProbe() }

// startProbe returns what waits for the probe, and what has the next one try again.
func startProbe() (wait func() (Capabilities, error), again func()) {
	probing.Lock()
	defer probing.Unlock()
	if probing.wait == nil {
		var found Capabilities
		done := throwaway.Start(func() (err error) {
			found, err = probeHere()
			return err
		})
		probing.wait = sync.OnceValues(func() (Capabilities, error) {
			if err := done(); err != nil {
				return Capabilities{}, fmt.Errorf("probe the kernel's conntrack: %w", err)
			}
			return found, nil
		})
	}
	return probing.wait, func() {
		probing.Lock()
		defer probing.Unlock()
		probing.wait = nil
	}
}

// Probe tries what this kernel can do, in a network namespace that it makes for that and throws
// away, so nothing is ever tried on a table in use. For each family the kernel walks over the hash of all namespaces
// once: a fifth of an unread dump. Versions say nothing, for distributions port features back. What was found is
// remembered; an error means that nothing was found out (making a namespace needs CAP_SYS_ADMIN), and the next
// call tries again. Until then treat every capability as missing, as the returned value does.
func Probe() (Capabilities, error) {
	wait, again := startProbe()
	found, err := wait()
	if err != nil {
		again()
	}
	return found, err
}

// capabilities is what t may rely on.
func (t *Table) capabilities() Capabilities {
	if t.force != nil {
		return *t.force
	}
	c, _ := Probe() // no answer is no capability
	return c
}

// probeHere probes in the calling thread's namespace, whose table it fills and empties.
func probeHere() (found Capabilities, err error) {
	t, err := Open()
	if err != nil {
		return found, err
	}
	defer t.Close()
	one4, other4 := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	one6, other6 := netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::2")
	if found.FilteredDump.IPv4, err = t.probe(one4, other4); err != nil {
		return found, err
	}
	found.FilteredDump.IPv6, err = t.probe(one6, other6)
	return found, err
}

// probe makes an entry of each source and says whether a dump has the first one's only. Then it deletes them: for a
// namespace that goes with entries the kernel walks over the hash of all, and has others wait for that.
func (t *Table) probe(wanted, other netip.Addr) (dumps bool, err error) {
	for _, source := range []netip.Addr{wanted, other} {
		if err := t.ask(msgNew, unix.NLM_F_CREATE|unix.NLM_F_EXCL, source); err != nil {
			return false, fmt.Errorf("create an entry to probe with: %w", err)
		}
	}
	dumped, err := t.sourcesOf(part{source: wanted})
	for _, source := range []netip.Addr{wanted, other} {
		if err := t.ask(msgDelete, 0, source); err != nil {
			return false, fmt.Errorf("delete an entry that was probed with: %w", err)
		}
	}
	return len(dumped) == 1 && dumped[wanted] == 1, err
}

// sourcesOf counts the entries of a part of the table by source address.
func (t *Table) sourcesOf(p part) (map[netip.Addr]int, error) {
	counts := make(map[netip.Addr]int)
	// No context: the table has four entries, and the socket its own timeout.
	_, err := t.walk(context.Background(), p, 0, func(e *entry) bool {
		counts[e.orig.src.netip()]++
		return true
	})
	return counts, err
}

// ask makes or deletes one UDP entry from source to itself, a minute long.
func (t *Table) ask(what uint16, flags uint16, source netip.Addr) error {
	s, err := t.dial()
	if err != nil {
		return err
	}
	defer s.close()
	b := appendMessage(nil, what, flags|unix.NLM_F_ACK, 0, familyOf(source))
	b = appendUDPTuple(b, attrTupleOrig, source, 1, 2)
	b = appendUDPTuple(b, attrTupleReply, source, 2, 1)
	b = appendAttr(b, attrTimeout, 0, 0, 0, 60)
	closeMessage(b, 0)
	if err := s.send(b); err != nil {
		return err
	}
	return s.acknowledged()
}

func appendUDPTuple(b []byte, kind uint16, both netip.Addr, srcPort, dstPort uint16) []byte {
	src, dst := uint16(ipV4Src), uint16(ipV4Dst)
	if both.Is6() {
		src, dst = ipV6Src, ipV6Dst
	}
	b, tuple := openNest(b, kind)
	b, ip := openNest(b, tupleIP)
	b = appendAttr(b, src, both.AsSlice()...)
	b = appendAttr(b, dst, both.AsSlice()...)
	closeNest(b, ip)
	b, proto := openNest(b, tupleProto)
	b = appendAttr(b, protoNum, protoUDP)
	b = appendAttr(b, protoSrcPort, binary.BigEndian.AppendUint16(nil, srcPort)...)
	b = appendAttr(b, protoDstPort, binary.BigEndian.AppendUint16(nil, dstPort)...)
	closeNest(b, proto)
	closeNest(b, tuple)
	return b
}
