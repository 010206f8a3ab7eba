package nft

import (
	"fmt"
	"net"
	"net/netip"
	"strings"

	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"ctguard/policy"
)

// statement is a piece of a rule in nft's syntax and the expressions it stands for. What it takes for
// granted about the packet is named, not written: [newRule] adds the test where it is missing, as
// nft does.
type statement struct {
	text   string
	family uint8 // NFPROTO_IPV4 or NFPROTO_IPV6; 0 for either
	l4     uint8 // IP protocol number; 0 for any
	exprs  []expr.Any
}

// rule is one line of a chain.
type rule struct {
	text  string
	exprs []expr.Any
}

// newRule joins statements.
func newRule(statements ...statement) rule {
	var r rule
	var family, l4 uint8
	texts := make([]string, 0, len(statements))
	for i, c := range statements {
		if c.family != 0 && c.family != family {
			family = c.family
			r.exprs = append(r.exprs, loadMeta(expr.MetaKeyNFPROTO), equal([]byte{family}))
		}
		if c.l4 != 0 && c.l4 != l4 {
			l4 = c.l4
			r.exprs = append(r.exprs, loadMeta(expr.MetaKeyL4PROTO), equal([]byte{l4}))
		}
		r.exprs = append(r.exprs, c.exprs...)
		if i+1 < len(statements) && statements[i+1].implies(c) {
			continue
		}
		texts = append(texts, c.text)
	}
	r.text = strings.Join(texts, " ")
	return r
}

// implies says whether c is about the header of the protocol that before tests for: nft does not list
// that test then.
func (c statement) implies(before statement) bool {
	name, ok := strings.CutPrefix(before.text, "meta l4proto ")
	return ok && strings.HasPrefix(c.text, name+" ")
}

// reg is the register every expression works in; concatenations go on in the 32-bit register after it.
const (
	reg     = unix.NFT_REG_1
	regNext = unix.NFT_REG32_01
)

func loadMeta(key expr.MetaKey) expr.Any { return &expr.Meta{Key: key, Register: reg} }

func equal(data []byte) expr.Any {
	return &expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: data}
}

func masked(mask []byte) expr.Any {
	return &expr.Bitwise{SourceRegister: reg, DestRegister: reg, Len: uint32(len(mask)), Mask: mask, Xor: make([]byte,
		len(mask))}
}

func loadHeader(base expr.PayloadBase, offset, length uint32) *expr.Payload {
	return &expr.Payload{DestRegister: reg, Base: base, Offset: offset, Len: length}
}

// loopbackIndex is LOOPBACK_IFINDEX in include/net/flow.h: lo is always the first interface.
const loopbackIndex = 1

// inLoopback and outLoopback match packets by way of lo.
func inLoopback() statement {
	return statement{text: `iif "lo"`, exprs: []expr.Any{loadMeta(expr.MetaKeyIIF),
		equal(binaryutil.NativeEndian.PutUint32(loopbackIndex))}}
}

func outLoopback() statement {
	return statement{text: `oif "lo"`, exprs: []expr.Any{loadMeta(expr.MetaKeyOIF),
		equal(binaryutil.NativeEndian.PutUint32(loopbackIndex))}}
}

// comesBy and leavesBy match packets by way of an interface. An interface that comes and goes keeps
// its name, not its number.
func comesBy(device string) statement { return byDevice("iifname", expr.MetaKeyIIFNAME, device) }

func leavesBy(device string) statement { return byDevice("oifname", expr.MetaKeyOIFNAME, device) }

func byDevice(what string, key expr.MetaKey, device string) statement {
	name := make([]byte, unix.IFNAMSIZ)
	copy(name, device)
	return statement{text: fmt.Sprintf("%s %q", what, device), exprs: []expr.Any{loadMeta(key), equal(name)}}
}

// side is an end of a packet as its headers name it.
type side struct {
	addr, port string
	v4, v6, th uint32 // offsets of the address in the IPv4 and IPv6 header and of the port in the transport header
}

var (
	source      = side{addr: "saddr", port: "sport", v4: 12, v6: 8, th: 0}
	destination = side{addr: "daddr", port: "dport", v4: 16, v6: 24, th: 2}
)

// loadAddr loads s's address of one family.
func (s side) loadAddr(v6 bool) statement {
	if v6 {
		return statement{text: "ip6 " + s.addr, family: unix.NFPROTO_IPV6,
			exprs: []expr.Any{loadHeader(expr.PayloadBaseNetworkHeader, s.v6, 16)}}
	}
	return statement{text: "ip " + s.addr, family: unix.NFPROTO_IPV4,
		exprs: []expr.Any{loadHeader(expr.PayloadBaseNetworkHeader, s.v4, 4)}}
}

// inSet matches packets whose address on side s is in an address set.
func (s side) inSet(set addressSet) statement {
	c := s.loadAddr(set.v6)
	c.text += " @" + set.name
	c.exprs = append(c.exprs, &expr.Lookup{SourceRegister: reg, SetName: set.name})
	return c
}

// sourceVerdict goes where a verdict map sends the source.
func sourceVerdict(set addressSet) statement {
	c := source.loadAddr(set.v6)
	c.text += " vmap @" + set.name
	c.exprs = append(c.exprs, &expr.Lookup{SourceRegister: reg, SetName: set.name, DestRegister: unix.NFT_REG_VERDICT,
		IsDestRegSet: true})
	return c
}

// in matches packets whose address on side s is in p.
func (s side) in(p netip.Prefix) statement {
	c := s.loadAddr(p.Addr().Is6())
	switch p.Bits() {
	case 0: // the family is all there is to test
		name := map[uint8]string{unix.NFPROTO_IPV4: "ipv4", unix.NFPROTO_IPV6: "ipv6"}[c.family]
		return statement{text: "meta nfproto " + name, family: c.family}
	case p.Addr().BitLen():
		c.text += " " + p.Addr().String()
	default:
		c.text += " " + p.String()
		c.exprs = append(c.exprs, masked(net.CIDRMask(p.Bits(), p.Addr().BitLen())))
	}
	c.exprs = append(c.exprs, equal(p.Addr().AsSlice()))
	return c
}

// ipProtocols maps the protocols that have ports to their numbers.
var ipProtocols = map[policy.Protocol]uint8{policy.TCP: unix.IPPROTO_TCP, policy.UDP: unix.IPPROTO_UDP}

// is matches one port of one protocol on side s.
func (s side) is(proto policy.Protocol, port uint16) statement {
	return statement{
		text:  fmt.Sprintf("%s %s %d", proto, s.port, port),
		l4:    ipProtocols[proto],
		exprs: []expr.Any{loadHeader(expr.PayloadBaseTransportHeader, s.th, 2), equal(binaryutil.BigEndian.PutUint16(port))},
	}
}

// within matches the ports of one protocol from first to last on side s.
func (s side) within(proto policy.Protocol, first, last uint16) statement {
	return statement{
		text: fmt.Sprintf("%s %s %d-%d", proto, s.port, first, last),
		l4:   ipProtocols[proto],
		exprs: []expr.Any{loadHeader(expr.PayloadBaseTransportHeader, s.th, 2), &expr.Range{
			Op: expr.CmpOpEq, Register: reg, FromData: binaryutil.BigEndian.PutUint16(first),
			ToData: binaryutil.BigEndian.PutUint16(last),
		}},
	}
}

// serviceIn matches packets whose protocol and port on side s are in a set of services, and counts
// them there if the set counts.
func (s side) serviceIn(set string) statement {
	port := loadHeader(expr.PayloadBaseTransportHeader, s.th, 2)
	port.DestRegister = regNext
	return statement{
		text:  fmt.Sprintf("meta l4proto . th %s @%s", s.port, set),
		exprs: []expr.Any{loadMeta(expr.MetaKeyL4PROTO), port, &expr.Lookup{SourceRegister: reg, SetName: set}},
	}
}

// tcpServiceIn is serviceIn after a test for TCP; nft then names the header.
func (s side) tcpServiceIn(set string) statement {
	return s.protocolServiceIn(policy.TCP, set)
}

// protocolServiceIn is serviceIn after a test for one protocol.
func (s side) protocolServiceIn(proto policy.Protocol, set string) statement {
	c := s.serviceIn(set)
	c.text = fmt.Sprintf("meta l4proto . %s %s @%s", proto, s.port, set)
	return c
}

// portIn matches packets of a protocol whose port on side s is in a set of ports.
func (s side) portIn(set portSet) statement {
	return statement{
		text: fmt.Sprintf("%s %s @%s", set.proto, s.port, set.name),
		l4:   ipProtocols[set.proto],
		exprs: []expr.Any{loadHeader(expr.PayloadBaseTransportHeader, s.th, 2), &expr.Lookup{SourceRegister: reg,
			SetName: set.name}},
	}
}

// opensTCP matches the first packet of a TCP connection: SYN without ACK.
func opensTCP() statement {
	const fin, syn, rst, ack = 0x01, 0x02, 0x04, 0x10
	return statement{
		text: "tcp flags syn / fin,syn,rst,ack",
		l4:   unix.IPPROTO_TCP,
		exprs: []expr.Any{
			loadHeader(expr.PayloadBaseTransportHeader, 13, 1), masked([]byte{fin | syn | rst | ack}), equal([]byte{syn}),
		},
	}
}

// acceptsTCP matches the answer to that: SYN and ACK.
func acceptsTCP() statement {
	const fin, syn, rst, ack = 0x01, 0x02, 0x04, 0x10
	return statement{
		text: "tcp flags syn,ack / fin,syn,rst,ack",
		l4:   unix.IPPROTO_TCP,
		exprs: []expr.Any{
			loadHeader(expr.PayloadBaseTransportHeader, 13, 1), masked([]byte{fin | syn | rst | ack}), equal([]byte{syn | ack}),
		},
	}
}

// answersTCP matches packets of a TCP connection after its first: ACK without SYN.
func answersTCP() statement {
	const syn, ack = 0x02, 0x10
	return statement{
		text: "tcp flags ack / syn,ack",
		l4:   unix.IPPROTO_TCP,
		exprs: []expr.Any{
			loadHeader(expr.PayloadBaseTransportHeader, 13, 1), masked([]byte{syn | ack}), equal([]byte{ack}),
		},
	}
}

// continuesTCP matches packets in the middle of a TCP connection: neither its first two nor its last.
func continuesTCP() statement {
	const fin, syn, rst = 0x01, 0x02, 0x04
	return statement{
		text: "tcp flags ! fin,syn,rst",
		l4:   unix.IPPROTO_TCP,
		exprs: []expr.Any{
			loadHeader(expr.PayloadBaseTransportHeader, 13, 1), masked([]byte{fin | syn | rst}), equal([]byte{0}),
		},
	}
}

// resets matches what ends a TCP connection at once.
func resets() statement {
	const rst = 0x04
	return statement{
		text: "tcp flags rst",
		l4:   unix.IPPROTO_TCP,
		exprs: []expr.Any{
			loadHeader(expr.PayloadBaseTransportHeader, 13, 1), masked([]byte{rst}), &expr.Cmp{Op: expr.CmpOpNeq,
				Register: reg, Data: []byte{0}},
		},
	}
}

// route is a kind of destination as the routing table knows it: RTN_* in include/uapi/linux/rtnetlink.h.
type route string

const (
	toLocal     route = "local"
	toMulticast route = "multicast"
	toBroadcast route = "broadcast"
)

// going matches packets by the kind of their destination address.
func going(r route) statement {
	kind := map[route]uint32{toLocal: unix.RTN_LOCAL, toMulticast: unix.RTN_MULTICAST, toBroadcast: unix.RTN_BROADCAST}[r]
	return statement{
		text: "fib daddr type " + string(r),
		exprs: []expr.Any{&expr.Fib{Register: reg, FlagDADDR: true, ResultADDRTYPE: true},
			equal(binaryutil.NativeEndian.PutUint32(kind))},
	}
}

// fromElsewhere matches packets whose source address is none of this host's.
func fromElsewhere() statement {
	return statement{
		text: "fib saddr type != local",
		exprs: []expr.Any{
			&expr.Fib{Register: reg, FlagSADDR: true, ResultADDRTYPE: true},
			&expr.Cmp{Op: expr.CmpOpNeq, Register: reg, Data: binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL)},
		},
	}
}

// fromSomebody matches packets whose source is another host's address, as far as the routing table knows:
// the kernel drops others between prerouting and input, so they say nothing about the host's rules.
func fromSomebody() statement {
	return statement{
		text: "fib saddr type unicast",
		exprs: []expr.Any{
			&expr.Fib{Register: reg, FlagSADDR: true, ResultADDRTYPE: true},
			equal(binaryutil.NativeEndian.PutUint32(unix.RTN_UNICAST)),
		},
	}
}

// awaited matches packets that a socket of this host waits for, one that is closing or in the middle of
// a handshake too: of the keys of the expression socket only this one can be read of every socket
// (net/netfilter/nft_socket.c).
func awaited() statement {
	return statement{
		text: "socket transparent <= 1",
		exprs: []expr.Any{
			&expr.Socket{Key: expr.SocketKeyTransparent, Register: reg},
			&expr.Cmp{Op: expr.CmpOpLte, Register: reg, Data: []byte{1}},
		},
	}
}

// protocolName is what nft calls an IP protocol.
func protocolName(number uint8) string {
	switch number {
	case unix.IPPROTO_ICMP:
		return "icmp"
	case unix.IPPROTO_ICMPV6:
		return "ipv6-icmp"
	}
	for name, n := range ipProtocols {
		if n == number {
			return string(name)
		}
	}
	return fmt.Sprint(number)
}

// protocol matches one IP protocol.
func protocol(number uint8) statement {
	return statement{text: "meta l4proto " + protocolName(number), l4: number}
}

// notTCP matches every protocol but TCP.
func notTCP() statement {
	return statement{text: "meta l4proto != tcp", exprs: []expr.Any{
		loadMeta(expr.MetaKeyL4PROTO), &expr.Cmp{Op: expr.CmpOpNeq, Register: reg, Data: []byte{unix.IPPROTO_TCP}},
	}}
}

// withoutEcho takes the echo out of a TCP segment's timestamps: 0 means that there is none (RFC 7323,
// section 3.2).
func withoutEcho() statement {
	const timestamps, echo = 8, 6 // the option's kind, and where in it the echo is
	return statement{
		text: "tcp option timestamp tsecr set 0",
		l4:   unix.IPPROTO_TCP,
		exprs: []expr.Any{
			&expr.Immediate{Register: reg, Data: make([]byte, 4)},
			&expr.Exthdr{SourceRegister: reg, Op: expr.ExthdrOpTcpopt, Type: timestamps, Offset: echo, Len: 4},
		},
	}
}

// icmpKind is a message of ICMP or ICMPv6; numbers as in include/uapi/linux/icmp.h and icmpv6.h.
type icmpKind struct {
	v6   bool
	name string
	kind uint8
}

var (
	echoRequest  = [2]icmpKind{{false, "echo-request", 8}, {true, "echo-request", 128}}
	echoReply    = [2]icmpKind{{false, "echo-reply", 0}, {true, "echo-reply", 129}}
	unreachable  = [2]icmpKind{{false, "destination-unreachable", 3}, {true, "destination-unreachable", 1}}
	packetTooBig = icmpKind{true, "packet-too-big", 2}
)

// statement matches the message.
func (k icmpKind) statement() statement {
	c := statement{text: "icmp type " + k.name, family: unix.NFPROTO_IPV4, l4: unix.IPPROTO_ICMP}
	if k.v6 {
		c = statement{text: "icmpv6 type " + k.name, family: unix.NFPROTO_IPV6, l4: unix.IPPROTO_ICMPV6}
	}
	c.exprs = []expr.Any{loadHeader(expr.PayloadBaseTransportHeader, 0, 1), equal([]byte{k.kind})}
	return c
}

// ctInvalid matches packets that conntrack could not place.
func ctInvalid() statement {
	return statement{text: "ct state invalid", exprs: ctBits(expr.CtKeySTATE, expr.CtStateBitINVALID, expr.CmpOpNeq)}
}

// ctOpens matches packets for which conntrack has just made an entry that is not in the table yet.
// State new alone would also match later packets of flows that nobody answers.
func ctOpens() statement {
	const confirmed = 1 << 3 // IPS_CONFIRMED in include/uapi/linux/netfilter/nf_conntrack_common.h
	return statement{
		text: "ct state new ct status ! confirmed",
		exprs: append(ctBits(expr.CtKeySTATE, expr.CtStateBitNEW, expr.CmpOpNeq),
			ctBits(expr.CtKeySTATUS, confirmed, expr.CmpOpEq)...),
	}
}

// ctNew matches packets that conntrack knows as the first of a flow.
func ctNew() statement {
	return statement{text: "ct state new", exprs: ctBits(expr.CtKeySTATE, expr.CtStateBitNEW, expr.CmpOpNeq)}
}

func ctBits(key expr.CtKey, bits uint32, op expr.CmpOp) []expr.Any {
	return []expr.Any{
		&expr.Ct{Register: reg, Key: key},
		masked(binaryutil.NativeEndian.PutUint32(bits)),
		&expr.Cmp{Op: op, Register: reg, Data: make([]byte, 4)},
	}
}
