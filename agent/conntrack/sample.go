package conntrack

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// sample is an entry to probe with, a minute long, of a protocol with ports.
type sample struct {
	src, dst   netip.AddrPort
	protocol   uint8
	status     uint32     // of those that a request may set: statusSeenReply, statusAssured
	translated netip.Addr // its destination becomes this, if valid; may load the kernel's NAT
}

// create makes an entry as s says.
func (t *Table) create(s sample) error {
	socket, err := t.dial()
	if err != nil {
		return err
	}
	defer socket.close()
	b := appendMessage(nil, msgNew, unix.NLM_F_CREATE|unix.NLM_F_EXCL|unix.NLM_F_ACK, 0, familyOf(s.src.Addr()), 0)
	b = appendSampleTuple(b, attrTupleOrig, s.protocol, s.src, s.dst)
	b = appendSampleTuple(b, attrTupleReply, s.protocol, s.dst, s.src)
	b = appendAttr(b, attrStatus, 0, 0, 0, byte(statusConfirmed|s.status))
	b = appendAttr(b, attrTimeout, 0, 0, 0, 60)
	if s.translated.IsValid() {
		b = appendNATDst(b, s.translated)
	}
	closeMessage(b, 0)
	if err := socket.send(b); err != nil {
		return err
	}
	if err := socket.acknowledged(); err != nil {
		return fmt.Errorf("create an entry to probe with: %w", err)
	}
	return nil
}

func appendSampleTuple(b []byte, kind uint16, protocol uint8, from, to netip.AddrPort) []byte {
	src, dst := uint16(ipV4Src), uint16(ipV4Dst)
	if from.Addr().Is6() {
		src, dst = ipV6Src, ipV6Dst
	}
	b, tuple := openNest(b, kind)
	b, ip := openNest(b, tupleIP)
	b = appendAttr(b, src, from.Addr().AsSlice()...)
	b = appendAttr(b, dst, to.Addr().AsSlice()...)
	closeNest(b, ip)
	b, proto := openNest(b, tupleProto)
	b = appendAttr(b, protoNum, protocol)
	b = appendAttr(b, protoSrcPort, binary.BigEndian.AppendUint16(nil, from.Port())...)
	b = appendAttr(b, protoDstPort, binary.BigEndian.AppendUint16(nil, to.Port())...)
	closeNest(b, proto)
	closeNest(b, tuple)
	return b
}

// appendNATDst appends a translation of the destination to one address, on whatever port is free.
func appendNATDst(b []byte, to netip.Addr) []byte {
	kind := uint16(natV4First)
	if to.Is6() {
		kind = natV6First
	}
	b, nat := openNest(b, attrNATDst)
	b = appendAttr(b, kind, to.AsSlice()...)
	closeNest(b, nat)
	return b
}
