package conntrack

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"

	"ctguard/policy"
)

// A filtered flush is a delete without a tuple to look up: the kernel goes over the table once, by
// itself, and deletes what its filter takes (ctnetlink_flush_conntrack in
// net/netfilter/nf_conntrack_netlink.c). Never ask for one on a kernel that has not been probed: one
// that skips a part of the filter deletes more, up to the whole table.

// flushSource deletes all entries of one original source.
func (t *Table) flushSource(source netip.Addr) error {
	return t.flush(familyOf(source), appendSourceFilter(nil, source))
}

// flushClass deletes a family's entries of a class that have no bit of statusLasting.
func (t *Table) flushClass(class policy.FlowClass, family uint8) error {
	return t.flush(family, appendClassFilter(nil, class))
}

func (t *Table) flush(family uint8, filter []byte) error {
	s, err := t.dial()
	if err != nil {
		return err
	}
	defer s.close()
	// Version 1 of struct nfgenmsg makes the kernel heed the family of a flush.
	b := appendMessage(nil, msgDelete, unix.NLM_F_ACK, 0, family, 1)
	b = append(b, filter...)
	closeMessage(b, 0)
	if err := s.send(b); err != nil {
		return err
	}
	return s.acknowledged()
}

// flushable says whether the kernel's filter knows the class. It compares ports of TCP and UDP only
// and takes those of every other protocol for equal, whatever was asked for
// (ctnetlink_filter_match_tuple, up to Linux 6.18 at least).
func flushable(class policy.FlowClass) bool {
	return class.Port == 0 || class.Protocol == protoTCP || class.Protocol == protoUDP
}

// appendClassFilter appends the attributes that restrict a flush to the entries of a class that have
// no bit of statusLasting: their protocol and, unless it is 0, destination port are in the original
// tuple. It names no address, so it is spared what the filter does with those of IPv6; see [Families].
func appendClassFilter(b []byte, class policy.FlowClass) []byte {
	flags := uint32(filterProto)
	if class.Port != 0 {
		flags |= filterDstPort
	}
	b, filter := openNest(b, attrFilter)
	b = appendAttr(b, filterOrigFlags, binary.NativeEndian.AppendUint32(nil, flags)...)
	b = appendAttr(b, filterReplyFlags, 0, 0, 0, 0)
	closeNest(b, filter)
	b, orig := openNest(b, attrTupleOrig)
	b, proto := openNest(b, tupleProto)
	b = appendAttr(b, protoNum, class.Protocol)
	if class.Port != 0 {
		b = appendAttr(b, protoDstPort, byte(class.Port>>8), byte(class.Port))
	}
	closeNest(b, proto)
	closeNest(b, orig)
	b = appendAttr(b, attrStatus, 0, 0, 0, 0)
	return appendAttr(b, attrStatusMask, 0, 0, 0, statusLasting)
}
