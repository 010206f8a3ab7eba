package packet

import (
	"encoding/binary"
	"net/netip"
)

// TCP header flags.
const (
	FIN = 1 << iota
	SYN
	RST
	PSH
	ACK
)

// Protocol numbers and header sizes.
const (
	ProtoTCP = 6
	ProtoUDP = 17
	// ProtoTest is for experiments and testing (RFC 3692).
	ProtoTest = 253

	EtherIPv4 = 0x0800
	EtherIPv6 = 0x86dd

	ethLen  = 14
	ip4Len  = 20
	ip6Len  = 40
	tcpLen  = 20
	udpLen  = 8
	hopMax  = 64
	synMSS4 = 1460
	synMSS6 = 1440
)

// MAC is an Ethernet address.
type MAC [6]byte

// Header is what every frame needs: who sends to whom.
type Header struct {
	SrcMAC, DstMAC   MAC
	Src, Dst         netip.Addr
	SrcPort, DstPort uint16
}

// Segment is the part of a TCP header that a small state machine cares about.
type Segment struct {
	Flags    uint8
	Seq, Ack uint32
}

// AppendTCP appends a frame with one TCP segment. A SYN carries a maximum segment
// size, as every real one does.
func AppendTCP(b []byte, h Header, s Segment, payload []byte) []byte {
	var opts []byte
	if s.Flags&SYN != 0 {
		mss := uint16(synMSS4)
		if h.Src.Is6() {
			mss = synMSS6
		}
		opts = []byte{2, 4, byte(mss >> 8), byte(mss)}
	}
	size := tcpLen + len(opts) + len(payload)
	b = appendIP(b, h, ProtoTCP, size)
	at := len(b)
	b = binary.BigEndian.AppendUint16(b, h.SrcPort)
	b = binary.BigEndian.AppendUint16(b, h.DstPort)
	b = binary.BigEndian.AppendUint32(b, s.Seq)
	b = binary.BigEndian.AppendUint32(b, s.Ack)
	b = append(b, byte((tcpLen+len(opts))/4<<4), s.Flags)
	b = append(b, 0xff, 0xff, 0, 0, 0, 0) // window, checksum, urgent pointer
	b = append(b, opts...)
	b = append(b, payload...)
	binary.BigEndian.PutUint16(b[at+16:], transportSum(h, ProtoTCP, b[at:]))
	return b
}

// AppendUDP appends a frame with one UDP datagram.
func AppendUDP(b []byte, h Header, payload []byte) []byte {
	size := udpLen + len(payload)
	b = appendIP(b, h, ProtoUDP, size)
	at := len(b)
	b = binary.BigEndian.AppendUint16(b, h.SrcPort)
	b = binary.BigEndian.AppendUint16(b, h.DstPort)
	b = binary.BigEndian.AppendUint16(b, uint16(size))
	b = append(b, 0, 0)
	b = append(b, payload...)
	sum := transportSum(h, ProtoUDP, b[at:])
	if sum == 0 {
		sum = 0xffff // zero means "no checksum" in UDP
	}
	binary.BigEndian.PutUint16(b[at+6:], sum)
	return b
}

// AppendOther appends a frame of a protocol that has no ports.
func AppendOther(b []byte, h Header, proto byte, payload []byte) []byte {
	return append(appendIP(b, h, proto, len(payload)), payload...)
}

func appendIP(b []byte, h Header, proto byte, size int) []byte {
	b = append(b, h.DstMAC[:]...)
	b = append(b, h.SrcMAC[:]...)
	if h.Src.Is6() {
		b = binary.BigEndian.AppendUint16(b, EtherIPv6)
		b = append(b, 0x60, 0, 0, 0)
		b = binary.BigEndian.AppendUint16(b, uint16(size))
		b = append(b, proto, hopMax)
		src, dst := h.Src.As16(), h.Dst.As16()
		b = append(b, src[:]...)
		return append(b, dst[:]...)
	}
	b = binary.BigEndian.AppendUint16(b, EtherIPv4)
	at := len(b)
	b = append(b, 0x45, 0)
	b = binary.BigEndian.AppendUint16(b, uint16(ip4Len+size))
	b = append(b, 0, 0, 0x40, 0, hopMax, proto, 0, 0) // id, don't fragment, ttl, protocol, checksum
	src, dst := h.Src.As4(), h.Dst.As4()
	b = append(b, src[:]...)
	b = append(b, dst[:]...)
	binary.BigEndian.PutUint16(b[at+10:], fold(sum(0, b[at:])))
	return b
}

// transportSum is the checksum of a TCP or UDP segment whose checksum field is zero.
func transportSum(h Header, proto uint32, segment []byte) uint16 {
	acc := proto + uint32(len(segment))
	if h.Src.Is6() {
		src, dst := h.Src.As16(), h.Dst.As16()
		acc = sum(sum(acc, src[:]), dst[:])
	} else {
		src, dst := h.Src.As4(), h.Dst.As4()
		acc = sum(sum(acc, src[:]), dst[:])
	}
	return fold(sum(acc, segment))
}

// sum adds b to a one's-complement sum. Frames are far too short to overflow it.
func sum(acc uint32, b []byte) uint32 {
	for len(b) >= 2 {
		acc += uint32(b[0])<<8 | uint32(b[1])
		b = b[2:]
	}
	if len(b) == 1 {
		acc += uint32(b[0]) << 8
	}
	return acc
}

func fold(acc uint32) uint16 {
	for acc > 0xffff {
		acc = acc&0xffff + acc>>16
	}
	return ^uint16(acc)
}
