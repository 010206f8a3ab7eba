package conntrack

import (
	"bytes"
	"context"
	"errors"
	"net/netip"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"ctguard/policy"
)

// probePurge fills the table with what a purge takes and what it spares, of both families, and says
// for which family a filtered flush takes exactly the former.
func (t *Table) probePurge() (can Families, err error) {
	all := slices.Concat(
		purgeSamples(netip.MustParseAddr("192.0.2.3"), netip.MustParseAddr("192.0.2.4")),
		purgeSamples(netip.MustParseAddr("2001:db8::3"), netip.MustParseAddr("2001:db8::4")))
	var samples []sample
	for _, s := range all {
		err := t.create(s)
		if s.translated.IsValid() && errors.Is(err, unix.EOPNOTSUPP) {
			continue // a kernel without NAT has no entries to spare for it
		}
		if err != nil {
			return can, err
		}
		samples = append(samples, s)
	}
	if can.IPv4, samples, err = t.flushesClasses(unix.AF_INET, samples); err != nil {
		return Families{}, err
	}
	// A flush that went too far has left too little for this one, which then fails too, as well it may.
	if can.IPv6, _, err = t.flushesClasses(unix.AF_INET6, samples); err != nil {
		return Families{}, err
	}
	return can, nil
}

// probeClasses are flushed one after the other: of a port, and then of any.
var probeClasses = [2]policy.FlowClass{{Protocol: protoUDP, Port: probePort}, {Protocol: protoUDP}}

const probePort = 1000

// purgeSamples are entries between two addresses of a family. Their source ports tell them apart.
func purgeSamples(src, dst netip.Addr) []sample {
	samples := []sample{
		{protocol: protoUDP},
		{protocol: protoUDP, status: statusSeenReply},
		{protocol: protoUDP, status: statusSeenReply | statusAssured},
		{protocol: protoTCP},
		{protocol: protoUDP}, // to another port
	}
	if natIsThere() {
		samples = append(samples, sample{protocol: protoUDP, translated: src})
	}
	for i := range samples {
		samples[i].src, samples[i].dst = netip.AddrPortFrom(src, uint16(1+i)), netip.AddrPortFrom(dst, probePort)
	}
	samples[4].dst = netip.AddrPortFrom(dst, probePort+1)
	return samples
}

// natIsThere says whether an entry with NAT can be had without loading a module, which a probe
// should not do to a host. Where it cannot, the probe rests on the assured entry: the kernel
// compares all bits of the status at once.
func natIsThere() bool {
	modules, err := os.ReadFile("/proc/modules")
	return errors.Is(err, os.ErrNotExist) || bytes.HasPrefix(modules, []byte("nf_nat ")) || bytes.Contains(modules, []byte("\nnf_nat "))
}

// goes says whether a flush of a class and family has to take s.
func (s sample) goes(class policy.FlowClass, family uint8) bool {
	return familyOf(s.src.Addr()) == family && s.protocol == class.Protocol &&
		(class.Port == 0 || s.dst.Port() == class.Port) && s.status&statusAssured == 0 && !s.translated.IsValid()
}

// flushesClasses flushes the probe's classes of one family and says whether each took what it should
// of the samples, and nothing else. It returns the samples that should be left, or all when a flush
// was refused.
func (t *Table) flushesClasses(family uint8, samples []sample) (exact bool, left []sample, err error) {
	for _, class := range probeClasses {
		refused := t.flushClass(class, family)
		if refused != nil {
			return false, samples, nil //nolint:nilerr // a kernel that refuses is an answer
		}
		gone := func(s sample) bool { return s.goes(class, family) }
		left = slices.DeleteFunc(slices.Clone(samples), gone)
		held, err := t.origins()
		if err != nil {
			return false, left, err
		}
		for _, s := range samples {
			if held[s.src] == gone(s) {
				return false, left, nil
			}
		}
		samples = left
	}
	return true, left, nil
}

// origins returns the original sources of all entries.
func (t *Table) origins() (map[netip.AddrPort]bool, error) {
	held := make(map[netip.AddrPort]bool)
	// No context: the table has a few entries, and the socket its own timeout.
	_, err := t.walk(context.Background(), part{}, time.Time{}, func(e *entry) bool {
		held[netip.AddrPortFrom(e.orig.src.netip(), e.orig.srcPort)] = true
		return true
	})
	return held, err
}
