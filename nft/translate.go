package nft

import (
	"fmt"
	"net/netip"

	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"ctguard/policy"
)

// pseudoHeader is NFT_PAYLOAD_L4CSUM_PSEUDOHDR: the checksums of TCP, UDP and ICMPv6 have the addresses in them.
const pseudoHeader = 1

// setAddr writes the address on side s.
//
// The library sends that flag only beside a checksum of the same header, and IPv6 has none. So the low half of the
// flow label takes that part, and gets back what it was.
func (s side) setAddr(to netip.Addr) statement {
	c := s.loadAddr(to.Is6())
	c.exprs = nil
	const flowLabel = 2
	label := &expr.Payload{DestRegister: unix.NFT_REG_2, Base: expr.PayloadBaseNetworkHeader, Offset: flowLabel, Len: 2}
	write := &expr.Payload{OperationType: expr.PayloadWrite, SourceRegister: reg, Base: expr.PayloadBaseNetworkHeader,
		Offset: s.v4, Len: 4, CsumType: expr.CsumTypeInet, CsumOffset: 10, CsumFlags: pseudoHeader}
	if to.Is6() {
		write.Offset, write.Len, write.CsumOffset = s.v6, 16, flowLabel
		c.exprs = append(c.exprs, label)
	}
	c.text += " set " + to.String()
	c.exprs = append(c.exprs, &expr.Immediate{Register: reg, Data: to.AsSlice()}, write)
	if to.Is6() {
		c.exprs = append(c.exprs, &expr.Payload{OperationType: expr.PayloadWrite, SourceRegister: unix.NFT_REG_2,
			Base: expr.PayloadBaseNetworkHeader, Offset: flowLabel, Len: 2})
	}
	return c
}

// setPort writes the port on side s and brings the checksum in line.
func (s side) setPort(proto policy.Protocol, port uint16) statement {
	c := s.setPortAlone(proto, port)
	write := c.exprs[1].(*expr.Payload)
	write.CsumType, write.CsumOffset = expr.CsumTypeInet, map[policy.Protocol]uint32{policy.TCP: 16, policy.UDP: 6}[proto]
	return c
}

// setPortAlone writes the port on side s and nothing else: for UDP packets without a checksum.
func (s side) setPortAlone(proto policy.Protocol, port uint16) statement {
	return statement{
		text: fmt.Sprintf("%s %s set %d", proto, s.port, port),
		l4:   ipProtocols[proto],
		exprs: []expr.Any{
			&expr.Immediate{Register: reg, Data: binaryutil.BigEndian.PutUint16(port)},
			&expr.Payload{OperationType: expr.PayloadWrite, SourceRegister: reg, Base: expr.PayloadBaseTransportHeader,
				Offset: s.th, Len: 2},
		},
	}
}

// withoutChecksum matches UDP packets whose sender computed none (RFC 768).
func withoutChecksum() statement {
	return statement{text: "udp checksum 0", l4: unix.IPPROTO_UDP, exprs: []expr.Any{
		loadHeader(expr.PayloadBaseTransportHeader, 6, 2), equal(make([]byte, 2))}}
}

// routed matches packets whose address on side s is reached by way of an interface, as the routing table has it.
func routed(s side, device string) statement {
	name := make([]byte, unix.IFNAMSIZ)
	copy(name, device)
	return statement{
		text: fmt.Sprintf("fib %s oifname %q", s.addr, device),
		exprs: []expr.Any{
			&expr.Fib{Register: reg, FlagSADDR: s == source, FlagDADDR: s == destination, ResultOIFNAME: true}, equal(name),
		},
	}
}

// notBy matches packets that came in by another interface.
func notBy(device string) statement {
	c := byDevice("iifname", expr.MetaKeyIIFNAME, device)
	c.text = fmt.Sprintf("iifname != %q", device)
	c.exprs[1].(*expr.Cmp).Op = expr.CmpOpNeq
	return c
}

// ctUntracked matches packets that were left untracked.
func ctUntracked() statement {
	return statement{text: "ct state untracked",
		exprs: ctBits(expr.CtKeySTATE, expr.CtStateBitUNTRACKED, expr.CmpOpNeq)}
}

// ctUnplaced matches packets that conntrack did not see or could not place.
func ctUnplaced() statement {
	return statement{text: "ct state invalid,untracked",
		exprs: ctBits(expr.CtKeySTATE, expr.CtStateBitINVALID|expr.CtStateBitUNTRACKED, expr.CmpOpNeq)}
}

// askedElsewhere matches packets of tracked flows that were opened to another address.
func askedElsewhere(addr netip.Addr) statement {
	key, name, family := expr.CtKeyDSTIP, "ip", uint8(unix.NFPROTO_IPV4)
	if addr.Is6() {
		key, name, family = expr.CtKeyDSTIP6, "ip6", unix.NFPROTO_IPV6
	}
	return statement{text: fmt.Sprintf("ct original %s daddr != %s", name, addr), family: family, exprs: []expr.Any{
		&expr.Ct{Register: reg, Key: key, Direction: 0},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: reg, Data: addr.AsSlice()},
	}}
}

// closes matches TCP packets after which a connection ends.
func closes() statement {
	const fin, rst = 0x01, 0x04
	c := resets()
	c.text = "tcp flags fin,rst"
	c.exprs = []expr.Any{loadHeader(expr.PayloadBaseTransportHeader, 13, 1), masked([]byte{fin | rst}),
		&expr.Cmp{Op: expr.CmpOpNeq, Register: reg, Data: []byte{0}}}
	return c
}

// goesOn matches TCP packets of a connection that is open: ACK alone of the flags that change that.
func goesOn() statement {
	const fin, syn, rst, ack = 0x01, 0x02, 0x04, 0x10
	c := acceptsTCP()
	c.text = "tcp flags ack / fin,syn,rst,ack"
	c.exprs[len(c.exprs)-1] = equal([]byte{ack})
	return c
}
