package packet

import (
	"encoding/binary"
	"fmt"
	"net/netip"
)

// ParseTCP reads the addresses and the segment of an Ethernet frame; ok is false
// for anything but plain TCP. IPv6 extension headers are not followed: the lab's
// hosts send none.
func ParseTCP(frame []byte) (h Header, s Segment, ok bool) {
	if len(frame) < ethLen {
		return h, s, false
	}
	copy(h.DstMAC[:], frame)
	copy(h.SrcMAC[:], frame[6:])
	b := frame[ethLen:]
	switch binary.BigEndian.Uint16(frame[12:]) {
	case EtherIPv4:
		if len(b) < ip4Len || b[9] != ProtoTCP {
			return h, s, false
		}
		h.Src, h.Dst = netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20]))
		if n := int(b[0]&0xf) * 4; n <= len(b) {
			b = b[n:]
		}
	case EtherIPv6:
		if len(b) < ip6Len || b[6] != ProtoTCP {
			return h, s, false
		}
		h.Src, h.Dst = netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40]))
		b = b[ip6Len:]
	default:
		return h, s, false
	}
	if len(b) < tcpLen {
		return h, s, false
	}
	h.SrcPort, h.DstPort = binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:])
	s.Seq, s.Ack, s.Flags = binary.BigEndian.Uint32(b[4:]), binary.BigEndian.Uint32(b[8:]), b[13]
	return h, s, true
}

// Describe says in words who sent an IPv4 frame to whom.
func Describe(frame []byte) string {
	if h, s, ok := ParseTCP(frame); ok {
		return fmt.Sprintf("TCP %v:%d to %v:%d, flags %#x", h.Src, h.SrcPort, h.Dst, h.DstPort, s.Flags)
	}
	if len(frame) < ethLen+ip4Len {
		return fmt.Sprintf("a frame of %d bytes", len(frame))
	}
	b := frame[ethLen:]
	return fmt.Sprintf("protocol %d, %v to %v", b[9], netip.AddrFrom4([4]byte(b[12:16])),
		netip.AddrFrom4([4]byte(b[16:20])))
}
