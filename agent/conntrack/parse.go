package conntrack

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"

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
	message   []byte // struct nfgenmsg and the attributes
	orig      tuple
	tupleSpan span   // CTA_TUPLE_ORIG, header and padding included: what names the entry in a request
	zoneSpan  span   // CTA_ZONE, likewise; empty in the default zone
	idSpan    span   // CTA_ID, likewise
	replySpan span   // the contents of CTA_TUPLE_REPLY
	infoSpan  span   // the contents of CTA_PROTOINFO
	status    uint32 // enum ip_conntrack_status
	timeout   uint32 // seconds left; noTimeout when the kernel does not say, as for offloaded flows
	family    uint8  // AF_INET or AF_INET6
	state     uint8  // of the protocol that has protoInfo
	protoInfo uint8  // protoInfoTCP, protoInfoDCCP, protoInfoSCTP, or 0
	helped    bool   // a helper follows the flow (CTA_HELP)
	proxied   bool   // synproxy opened it, for who came back with a cookie (CTA_SYNPROXY, with the cookie)
	mark      uint32
}

// noTimeout is longer than any timeout: it makes an entry the last to be evicted in its class.
const noTimeout = 1<<32 - 1

// span is a part of a message, by offsets.
type span struct{ from, to uint32 }

func (e *entry) bytes(s span) []byte { return e.message[s.from:s.to] }

// id returns the kernel's id of the entry, 0 where it gave none.
func (e *entry) id() uint32 {
	if b := e.bytes(e.idSpan); len(b) == attrLen+4 {
		return binary.BigEndian.Uint32(b[attrLen:])
	}
	return 0
}

// mayBeginAgain reports whether a SYN with the same ports would end this entry and begin another one
// (nf_conntrack_tcp_packet in net/netfilter/nf_conntrack_proto_tcp.c).
func (e *entry) mayBeginAgain() bool {
	return e.protoInfo == protoInfoTCP && (e.state == tcpTimeWait || e.state == tcpClose)
}

// goes reports whether an earlier pass has let such an entry run out.
func (e *entry) goes() bool { return e.mayBeginAgain() && e.timeout <= lastSecond }

// parse fills e from the payload of one message and says whether it holds an entry. Attributes that
// it does not know are skipped; a message that is cut off keeps what came before the cut, and
// counts as an entry if the original tuple did.
func (e *entry) parse(message []byte) bool {
	if len(message) < familyLen {
		return false
	}
	e.message, e.family = message, message[0]
	e.zoneSpan, e.idSpan, e.replySpan, e.infoSpan = span{}, span{}, span{}, span{}
	e.status, e.timeout, e.state, e.protoInfo, e.helped, e.proxied, e.mark = 0, noTimeout, 0, 0, false, false, 0
	found := false
	for rest := message[familyLen:]; len(rest) >= attrLen; {
		n, kind := attrHead(rest)
		if n < attrLen || n > len(rest) {
			break
		}
		at := len(message) - len(rest)
		if n == attrLen+4 { // most attributes are one number, and most of those nobody asks for
			switch kind {
			case attrStatus:
				e.status = binary.BigEndian.Uint32(rest[attrLen:])
			case attrTimeout:
				e.timeout = binary.BigEndian.Uint32(rest[attrLen:])
			case attrMark:
				e.mark = binary.BigEndian.Uint32(rest[attrLen:])
			case attrID:
				e.idSpan = span{uint32(at), uint32(at + n)}
			}
			rest = rest[attrLen+4:]
			continue
		}
		next := min(align(n), len(rest)) // messages are aligned, and so are their attributes
		found = e.take(kind, at, at+n, at+next) || found
		rest = rest[next:]
	}
	return found
}

// take reads an attribute that is not one number: where it begins, ends, and ends with its padding.
// It says whether that was a good original tuple.
func (e *entry) take(kind uint16, at, to, next int) bool {
	value := e.message[at+attrLen : to]
	switch kind {
	case attrTupleOrig:
		e.tupleSpan = span{uint32(at), uint32(next)}
		return e.orig.parse(value)
	case attrTupleReply:
		e.replySpan = span{uint32(at + attrLen), uint32(to)}
	case attrProtoInfo:
		e.infoSpan = span{uint32(at + attrLen), uint32(to)}
		e.parseProtoInfo(value)
	case attrZone:
		e.zoneSpan = span{uint32(at), uint32(next)}
	case attrHelp:
		e.helped = true
	case attrSynproxy:
		kind, isn, _, ok := attr(value)
		e.proxied = ok && kind == synproxyISN && len(isn) == 4 && binary.BigEndian.Uint32(isn) != 0
	}
	return false
}

const typeMask = 0x3fff // NLA_TYPE_MASK in include/uapi/linux/netlink.h

// attrHead reads struct nlattr: the length, itself included, and the type without flags.
func attrHead(b []byte) (n int, kind uint16) {
	_ = b[3]
	return int(binary.NativeEndian.Uint16(b)), binary.NativeEndian.Uint16(b[2:]) & typeMask
}

// attr splits the first attribute off b: its type without flags, its value and what follows its
// padding. It is not ok at the end, nor where an attribute would reach past the end.
func attr(b []byte) (kind uint16, value, rest []byte, ok bool) {
	if len(b) < attrLen {
		return 0, nil, nil, false
	}
	n, kind := attrHead(b)
	if n < attrLen || n > len(b) {
		return 0, nil, nil, false
	}
	return kind, b[attrLen:n], b[min(align(n), len(b)):], true
}

// attrHeader is struct nlattr as one number, to compare with.
func attrHeader(n, kind uint16) uint32 {
	var b [attrLen]byte
	binary.NativeEndian.PutUint16(b[:], n)
	binary.NativeEndian.PutUint16(b[2:], kind)
	return binary.NativeEndian.Uint32(b[:])
}

// The headers inside a tuple with ports, as every kernel so far writes them.
var (
	headerIPv4    = attrHeader(20, tupleIP|unix.NLA_F_NESTED)
	headerIPv6    = attrHeader(44, tupleIP|unix.NLA_F_NESTED)
	headerSrc4    = attrHeader(8, ipV4Src)
	headerDst4    = attrHeader(8, ipV4Dst)
	headerSrc6    = attrHeader(20, ipV6Src)
	headerDst6    = attrHeader(20, ipV6Dst)
	headerProto   = attrHeader(28, tupleProto|unix.NLA_F_NESTED)
	headerNum     = attrHeader(5, protoNum)
	headerSrcPort = attrHeader(6, protoSrcPort)
	headerDstPort = attrHeader(6, protoDstPort)
)

// parse fills t from the contents of a tuple attribute and says whether both addresses and the
// protocol were there. Nearly every tuple has the same few attributes in the same places, and a
// comparison with those costs a fifth of walking them; any other tuple is walked.
func (t *tuple) parse(b []byte) bool {
	header := func(at int) uint32 { return binary.NativeEndian.Uint32(b[at:]) }
	switch {
	case len(b) == 48 && header(0) == headerIPv4 && header(4) == headerSrc4 && header(12) == headerDst4 &&
		t.parsePorts(b[20:]):
		t.src = address{0, v4Mapped | uint64(binary.BigEndian.Uint32(b[8:]))}
		t.dst = address{0, v4Mapped | uint64(binary.BigEndian.Uint32(b[16:]))}
		return true
	case len(b) == 72 && header(0) == headerIPv6 && header(4) == headerSrc6 && header(24) == headerDst6 &&
		t.parsePorts(b[44:]):
		t.src = address{binary.BigEndian.Uint64(b[8:]), binary.BigEndian.Uint64(b[16:])}
		t.dst = address{binary.BigEndian.Uint64(b[28:]), binary.BigEndian.Uint64(b[36:])}
		return true
	}
	return t.walk(b)
}

// parsePorts is the part of parse behind the addresses.
func (t *tuple) parsePorts(b []byte) bool {
	_ = b[27]
	header := func(at int) uint32 { return binary.NativeEndian.Uint32(b[at:]) }
	if header(0) != headerProto || header(4) != headerNum || header(12) != headerSrcPort || header(20) != headerDstPort {
		return false
	}
	t.proto, t.icmpID, t.icmpType, t.icmpCode = b[8], 0, 0, 0
	t.srcPort, t.dstPort = binary.BigEndian.Uint16(b[16:]), binary.BigEndian.Uint16(b[24:])
	return true
}

// walk is parse for any tuple.
func (t *tuple) walk(b []byte) bool {
	*t = tuple{}
	ip, proto := false, false
	for {
		kind, value, rest, ok := attr(b)
		if !ok {
			return ip && proto
		}
		switch kind {
		case tupleIP:
			ip = t.walkAddresses(value)
		case tupleProto:
			proto = t.walkProto(value)
		}
		b = rest
	}
}

func (t *tuple) walkAddresses(b []byte) bool {
	src, dst := false, false
	for {
		kind, value, rest, ok := attr(b)
		if !ok {
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
		b = rest
	}
}

func (t *tuple) walkProto(b []byte) bool {
	found := false
	for {
		kind, value, rest, ok := attr(b)
		if !ok {
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
		b = rest
	}
}

// parseProtoInfo reads the state, which TCP, DCCP and SCTP keep in the same place.
func (e *entry) parseProtoInfo(b []byte) {
	kind, inner, _, ok := attr(b)
	if !ok || kind == 0 || kind > protoInfoSCTP {
		return
	}
	e.protoInfo = uint8(kind)
	for {
		kind, value, rest, ok := attr(inner)
		if !ok {
			return
		}
		if kind == protoInfoState {
			e.state = beUint8(value)
			return
		}
		inner = rest
	}
}

// unacked says whether TCP data waits for an acknowledgement, in either direction.
func (e *entry) unacked() bool {
	orig, reply := e.tcpFlags()
	return (orig|reply)&tcpUnacknowledged != 0
}

// tcpFlags returns the IP_CT_TCP_FLAGs of both directions, 0 of what is not TCP.
func (e *entry) tcpFlags() (orig, reply uint8) {
	if e.protoInfo != protoInfoTCP {
		return 0, 0
	}
	_, inner, _, _ := attr(e.bytes(e.infoSpan))
	for {
		kind, value, rest, ok := attr(inner)
		if !ok {
			return orig, reply
		}
		switch kind {
		case protoInfoFlagsOrig:
			orig = beUint8(value)
		case protoInfoFlagsRepl:
			reply = beUint8(value)
		}
		inner = rest
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

// class says how much the entry is worth; see [policy.Class]. Where the host sees one direction of TCP, connections
// have no answers.
func (e *entry) class(oneSided bool) policy.Class {
	switch {
	case oneSided && e.status&statusSeenReply == 0 && e.orig.proto == protoTCP:
		return policy.Assured
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
