package nft

import (
	"encoding/binary"
	"fmt"
	"math/big"
	"net/netip"
	"slices"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// An ICMP error carries the packet that it is about. Of a forwarded service that packet has to be translated as well:
// else the inside host would never learn that it has to send smaller packets, and clients would see its address.

// errorsEarly translates what tells the inside host about its answers, and leaves untracked what tells clients about
// their requests.
func (f forwarded) errorsEarly() []rule {
	addr, first, last := f.inside()
	from, to := f.selector.Ports()
	var list []rule
	about := []statement{comesBy(f.selector.Uplink), destination.in(f.selector.Local)}
	for _, kind := range f.errorKinds() {
		rewrites := []statement{}
		if f.selector.Translated() {
			rewrites = f.innerRewrites(source, f.selector.Inside)
			rewrites = append(rewrites, destination.setAddr(addr.Addr()))
		}
		list = append(list, newRule(slices.Concat(about, []statement{kind},
			f.inner(source, f.selector.Local.Addr(), from, to), []statement{notrack()}, rewrites, []statement{back()})...))
	}
	for _, kind := range f.errorKinds() {
		list = append(list, newRule(slices.Concat([]statement{kind, notBy(f.selector.Uplink)},
			f.inner(destination, addr.Addr(), first, last),
			[]statement{routed(destination, f.selector.Uplink), notrack(), back()})...))
	}
	return list
}

// errorsBehind translates what tells clients about their requests, this host's own errors too.
func (f forwarded) errorsBehind() []rule {
	addr, first, last := f.inside()
	var list []rule
	for _, kind := range f.errorKinds() {
		list = append(list, newRule(slices.Concat([]statement{kind, leavesBy(f.selector.Uplink), ctUnplaced()},
			f.inner(destination, addr.Addr(), first, last), f.innerRewrites(destination, f.outside()),
			[]statement{source.setAddr(f.selector.Local.Addr())})...))
	}
	return list
}

// errorsOut drops what this host says where its rules refuse an untracked packet, and leaves its other errors
// untracked: they are translated behind.
func (f forwarded) errorsOut() []rule {
	addr, first, last := f.inside()
	refuses := unreachable[0].statement()
	kinds := []statement{refuses}
	if f.family() == unix.NFPROTO_IPV6 {
		kinds = []statement{unreachable[1].statement()}
	} else {
		c := statement{text: "icmp code != frag-needed", family: unix.NFPROTO_IPV4, l4: unix.IPPROTO_ICMP,
			exprs: []expr.Any{loadHeader(expr.PayloadBaseTransportHeader, 1, 1),
				&expr.Cmp{Op: expr.CmpOpNeq, Register: reg, Data: []byte{fragmentationNeeded}}}}
		kinds = append(kinds, c)
	}
	list := []rule{
		newRule(slices.Concat(kinds, f.inner(destination, addr.Addr(), first, last), []statement{drop()})...),
		newRule(slices.Concat(kinds, f.inner(source, addr.Addr(), first, last), []statement{drop()})...),
	}
	for _, kind := range f.errorKinds() {
		list = append(list, newRule(slices.Concat([]statement{kind}, f.inner(destination, addr.Addr(), first, last),
			[]statement{notrack()})...))
	}
	return list
}

// Where in its way an error is looked at: before it is translated, or after.
const (
	outerError = false
	innerError = true
)

// counted counts errors that tell the inside host to send smaller packets.
func (f forwarded) counted(counter string, translated bool) []rule {
	about, at := f.selector.Local.Addr(), f.selector.Local
	first, last := f.selector.Ports()
	if translated {
		at, first, last = f.inside()
		about = at.Addr()
	}
	return []rule{newRule(slices.Concat([]statement{comesBy(f.selector.Uplink), destination.in(at), f.tooBig()},
		f.inner(source, about, first, last), []statement{count(f.counter(counter))})...)}
}

// errorKinds matches ICMP errors: unreachable, time exceeded and parameter problem, in IPv6 also packet too big.
func (f forwarded) errorKinds() []statement {
	if f.family() == unix.NFPROTO_IPV6 {
		return []statement{icmpTypes(icmpKind{true, "destination-unreachable,packet-too-big,time-exceeded,parameter-problem",
			1}, 4)}
	}
	return []statement{icmpTypes(icmpKind{false, "destination-unreachable", 3}, 3),
		icmpTypes(icmpKind{false, "time-exceeded,parameter-problem", 11}, 12)}
}

// icmpTypes matches the types from that of a kind to another.
func icmpTypes(from icmpKind, last uint8) statement {
	c := from.statement()
	if from.kind != last {
		name := map[bool]string{false: "icmp", true: "icmpv6"}[from.v6]
		c.text = fmt.Sprintf("%s type %d-%d", name, from.kind, last)
		c.exprs[len(c.exprs)-1] = &expr.Range{Op: expr.CmpOpEq, Register: reg, FromData: []byte{from.kind},
			ToData: []byte{last}}
	}
	return c
}

// tooBig matches errors that tell to send smaller packets.
func (f forwarded) tooBig() statement { return saysSmaller(f.family() == unix.NFPROTO_IPV6) }

// The layout of an ICMP error: eight bytes of its own, then the packet that it is about.
const (
	innerPacket = 8
	header4     = 20 // of an IPv4 packet without options
	header6     = 40
)

// innerPort is where the port on side s of the inner packet is, innerAddr its address.
func (f forwarded) innerPort(s side) uint32 {
	if f.family() == unix.NFPROTO_IPV6 {
		return innerPacket + header6 + s.th
	}
	return innerPacket + header4 + s.th
}

func (f forwarded) innerAddr(s side) (offset, length uint32) {
	if f.family() == unix.NFPROTO_IPV6 {
		return innerPacket + s.v6, 16
	}
	return innerPacket + s.v4, 4
}

// inner matches errors by the packet that they are about: the service's protocol, without options, and its address
// and ports on side s.
func (f forwarded) inner(s side, addr netip.Addr, first, last uint16) []statement {
	number := ipProtocols[f.selector.Protocol]
	offset, length := f.innerAddr(s)
	list := []statement{f.raw(innerPacket, 1, 0x45), f.raw(innerPacket+9, 1, uint64(number))}
	if f.family() == unix.NFPROTO_IPV6 {
		list = []statement{f.raw(innerPacket+6, 1, uint64(number))}
	}
	list = append(list, f.icmp(statement{
		text:  fmt.Sprintf("@th,%d,%d %s", 8*offset, 8*length, hex(addr.AsSlice())),
		exprs: []expr.Any{loadHeader(expr.PayloadBaseTransportHeader, offset, length), equal(addr.AsSlice())},
	}))
	port := f.innerPort(s)
	if first == last {
		return append(list, f.raw(port, 2, uint64(first)))
	}
	return append(list, f.icmp(statement{
		text: fmt.Sprintf("@th,%d,16 %#x-%#x", 8*port, first, last),
		exprs: []expr.Any{loadHeader(expr.PayloadBaseTransportHeader, port, 2), &expr.Range{Op: expr.CmpOpEq, Register: reg,
			FromData: binary.BigEndian.AppendUint16(nil, first), ToData: binary.BigEndian.AppendUint16(nil, last)}},
	}))
}

// innerRewrites writes an address and a port into the inner packet. In IPv4 its own checksum takes up the address, so
// that the error's stays as it is.
func (f forwarded) innerRewrites(s side, to netip.AddrPort) []statement {
	const checksum, headerChecksum = 2, innerPacket + 10
	offset, length := f.innerAddr(s)
	sum := uint32(headerChecksum)
	if f.family() == unix.NFPROTO_IPV6 {
		sum = checksum
	}
	list := []statement{f.write(offset, length, sum, to.Addr().AsSlice())}
	if f.selector.Inside.Port() != f.selector.Port {
		list = append(list, f.write(f.innerPort(s), 2, checksum, binary.BigEndian.AppendUint16(nil, to.Port())))
	}
	return list
}

// write writes into an ICMP message, whose length from offset on is that of data.
func (f forwarded) write(offset, length, checksum uint32, data []byte) statement {
	return f.icmp(statement{
		text: fmt.Sprintf("@th,%d,%d set %s", 8*offset, 8*length, hex(data)),
		exprs: []expr.Any{&expr.Immediate{Register: reg, Data: data}, &expr.Payload{OperationType: expr.PayloadWrite,
			SourceRegister: reg, Base: expr.PayloadBaseTransportHeader, Offset: offset, Len: length,
			CsumType: expr.CsumTypeInet, CsumOffset: checksum}},
	})
}

// hex writes a number as nft does.
func hex(data []byte) string { return "0x" + new(big.Int).SetBytes(data).Text(16) }

// raw matches one number of one or two bytes in an ICMP message.
func (f forwarded) raw(offset, length uint32, value uint64) statement {
	data := binary.BigEndian.AppendUint64(nil, value)[8-length:]
	return f.icmp(statement{
		text:  fmt.Sprintf("@th,%d,%d %#x", 8*offset, 8*length, value),
		exprs: []expr.Any{loadHeader(expr.PayloadBaseTransportHeader, offset, length), equal(data)},
	})
}

// icmp says which protocol a statement is about.
func (f forwarded) icmp(c statement) statement {
	c.family, c.l4 = f.family(), unix.IPPROTO_ICMP
	if c.family == unix.NFPROTO_IPV6 {
		c.l4 = unix.IPPROTO_ICMPV6
	}
	return c
}
