package conntrack

import (
	"encoding/binary"
	"net/netip"

	"ctguard/policy"
)

// address is an IP address in the shape that is cheapest to mask, compare and hash: big-endian
// halves, IPv4 as ::ffff:a.b.c.d (RFC 4291, 2.5.5.2).
type address struct{ hi, lo uint64 }

const v4Mapped = 0xffff << 32

func (a address) is4() bool { return a.hi == 0 && a.lo>>32 == 0xffff }

// mask keeps the first bits of a, where IPv4 addresses have their first bit at 96.
func (a address) mask(bits int) address {
	switch {
	case bits >= 128:
		return a
	case bits > 64:
		return address{a.hi, a.lo &^ (1<<(128-bits) - 1)}
	default:
		return address{a.hi &^ (1<<(64-bits) - 1), 0}
	}
}

func (a address) netip() netip.Addr {
	var b [16]byte
	binary.BigEndian.PutUint64(b[:8], a.hi)
	binary.BigEndian.PutUint64(b[8:], a.lo)
	return netip.AddrFrom16(b).Unmap()
}

func addressOf(ip netip.Addr) address {
	b := ip.As16()
	return address{binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:])}
}

// tuple is one direction of an entry. Ports are zero for protocols without them; the ICMP fields
// are zero for all but ICMP and ICMPv6.
type tuple struct {
	src, dst           address
	srcPort, dstPort   uint16
	icmpID             uint16
	icmpType, icmpCode uint8
	proto              uint8
}

// entry is what one message of a dump says, as far as ctguard needs it. It is made once and filled
// again and again; the spans point into the message and are gone with the next one.
type entry struct {
	orig      tuple
	message   []byte // struct nfgenmsg and the attributes
	tupleSpan span   // CTA_TUPLE_ORIG, header included: what names the entry in a request
	replySpan span   // the contents of CTA_TUPLE_REPLY
	zoneSpan  span   // CTA_ZONE, header included; empty in the default zone
	idSpan    span   // CTA_ID, header included
	status    uint32 // enum ip_conntrack_status
	timeout   uint32 // seconds left; noTimeout when the kernel does not say, as for offloaded flows
	family    uint8  // AF_INET or AF_INET6
	state     uint8  // of the protocol that has protoInfo
	protoInfo uint8  // protoInfoTCP, protoInfoDCCP, protoInfoSCTP, or 0
	unacked   bool   // TCP data waits for an acknowledgement, in either direction
	helped    bool   // a helper follows the flow (CTA_HELP)
}

// noTimeout is longer than any timeout: it makes an entry the last to be evicted in its class.
const noTimeout = 1<<32 - 1

// span is a part of a message, by offsets.
type span struct{ from, to uint32 }

func (e *entry) bytes(s span) []byte { return e.message[s.from:s.to] }

// parse fills e from the payload of one message and says whether it holds an entry. Attributes that
// it does not know are skipped; a message that is cut off keeps what came before the cut, and
// counts as an entry if the original tuple did.
func (e *entry) parse(message []byte) bool {
	if len(message) < familyLen {
		return false
	}
	*e = entry{message: message, family: message[0], timeout: noTimeout}
	found := false
	for at := familyLen; ; {
		kind, value, next := attr(message, at)
		if next == 0 {
			return found
		}
		s := span{uint32(at), uint32(min(next, len(message)))} // with its padding: requests repeat it
		switch kind {
		case attrTupleOrig:
			e.tupleSpan = s
			found = e.orig.parse(value)
		case attrTupleReply:
			e.replySpan = span{s.from + attrLen, uint32(at + attrLen + len(value))}
		case attrStatus:
			e.status = beUint32(value)
		case attrProtoInfo:
			e.parseProtoInfo(value)
		case attrTimeout:
			e.timeout = beUint32(value)
		case attrZone:
			e.zoneSpan = s
		case attrID:
			e.idSpan = s
		case attrHelp:
			e.helped = true
		}
		at = next
	}
}

// attr reads the attribute at an offset: its type without flags, its value, and where the next one
// begins; next is 0 at the end, and where an attribute would reach past the end.
func attr(b []byte, at int) (kind uint16, value []byte, next int) {
	if at+attrLen > len(b) {
		return 0, nil, 0
	}
	n := int(binary.NativeEndian.Uint16(b[at:]))
	if n < attrLen || at+n > len(b) {
		return 0, nil, 0
	}
	kind = binary.NativeEndian.Uint16(b[at+2:]) & 0x3fff // NLA_TYPE_MASK
	return kind, b[at+attrLen : at+n], at + align(n)
}

// parse fills t from the contents of a tuple attribute and says whether both addresses and the
// protocol were there.
func (t *tuple) parse(b []byte) bool {
	ip, proto := false, false
	for at := 0; ; {
		kind, value, next := attr(b, at)
		if next == 0 {
			return ip && proto
		}
		switch kind {
		case tupleIP:
			ip = t.parseAddresses(value)
		case tupleProto:
			proto = t.parseProto(value)
		}
		at = next
	}
}

func (t *tuple) parseAddresses(b []byte) bool {
	src, dst := false, false
	for at := 0; ; {
		kind, value, next := attr(b, at)
		if next == 0 {
			return src && dst
		}
		switch {
		case kind == ipV4Src && len(value) == 4:
			t.src, src = address{0, v4Mapped | uint64(binary.BigEndian.Uint32(value))}, true
		case kind == ipV4Dst && len(value) == 4:
			t.dst, dst = address{0, v4Mapped | uint64(binary.BigEndian.Uint32(value))}, true
		case kind == ipV6Src && len(value) == 16:
			t.src, src = address{binary.BigEndian.Uint64(value), binary.BigEndian.Uint64(value[8:])}, true
		case kind == ipV6Dst && len(value) == 16:
			t.dst, dst = address{binary.BigEndian.Uint64(value), binary.BigEndian.Uint64(value[8:])}, true
		}
		at = next
	}
}

func (t *tuple) parseProto(b []byte) bool {
	found := false
	for at := 0; ; {
		kind, value, next := attr(b, at)
		if next == 0 {
			return found
		}
		switch kind {
		case protoNum:
			t.proto, found = beUint8(value), len(value) > 0
		case protoSrcPort:
			t.srcPort = beUint16(value)
		case protoDstPort:
			t.dstPort = beUint16(value)
		case protoICMPID, protoICMPv6ID:
			t.icmpID = beUint16(value)
		case protoICMPType, protoICMPv6Type:
			t.icmpType = beUint8(value)
		case protoICMPCode, protoICMPv6Code:
			t.icmpCode = beUint8(value)
		}
		at = next
	}
}

// parseProtoInfo reads the state; TCP, DCCP and SCTP keep it in the same place.
func (e *entry) parseProtoInfo(b []byte) {
	kind, inner, next := attr(b, 0)
	if next == 0 || kind == 0 || kind > protoInfoSCTP {
		return
	}
	e.protoInfo = uint8(kind)
	for at := 0; ; {
		k, value, next := attr(inner, at)
		if next == 0 {
			return
		}
		switch {
		case k == protoInfoState:
			e.state = beUint8(value)
		case kind == protoInfoTCP && (k == protoInfoFlagsOrig || k == protoInfoFlagsRepl):
			e.unacked = e.unacked || beUint8(value)&tcpUnacknowledged != 0
		}
		at = next
	}
}

// The readers of integers give 0 for a value that is shorter than its type.

func beUint8(b []byte) uint8 {
	if len(b) < 1 {
		return 0
	}
	return b[0]
}

func beUint16(b []byte) uint16 {
	if len(b) < 2 {
		return 0
	}
	return binary.BigEndian.Uint16(b)
}

func beUint32(b []byte) uint32 {
	if len(b) < 4 {
		return 0
	}
	return binary.BigEndian.Uint32(b)
}

// class says how much the entry is worth; see [policy.Class].
func (e *entry) class() policy.Class {
	switch {
	case e.status&statusSeenReply == 0:
		return policy.Unreplied
	case e.protoInfo == protoInfoTCP && e.state == tcpSynRecv:
		return policy.HalfOpen
	case e.protoInfo == protoInfoTCP && e.state >= tcpFinWait && e.state <= tcpClose:
		return policy.Closing
	case e.status&statusAssured == 0:
		return policy.Replied
	}
	return policy.Assured
}

// translated says whether the entry carries NAT: by its status, or because the answer's addresses
// or ports are not simply the request's turned round.
func (e *entry) translated() bool {
	if e.status&(statusSrcNAT|statusDstNAT) != 0 {
		return true
	}
	var reply tuple
	if !reply.parse(e.bytes(e.replySpan)) {
		return true // unknown is not a licence
	}
	return reply.src != e.orig.dst || reply.dst != e.orig.src ||
		reply.srcPort != e.orig.dstPort || reply.dstPort != e.orig.srcPort || reply.icmpID != e.orig.icmpID
}
