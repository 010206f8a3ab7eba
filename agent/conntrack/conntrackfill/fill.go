package conntrackfill

import (
	"encoding/binary"
	"fmt"
	"iter"
	"net/netip"
	"runtime"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Status bits of an entry: enum ip_conntrack_status in
// include/uapi/linux/netfilter/nf_conntrack_common.h.
const (
	SeenReply    = 1 << 1
	Assured      = 1 << 2
	FixedTimeout = 1 << 10
	confirmed    = 1 << 3 // every entry of the table has it, and the kernel insists
)

// Flow is one entry to make. ICMP and ICMPv6 flows are echo requests with SrcPort as their id.
type Flow struct {
	Src, Dst         netip.Addr
	Proto            uint8
	SrcPort, DstPort uint16
	Status           uint32 // SeenReply, Assured, FixedTimeout
	State            uint8  // of TCP or SCTP; 0 leaves it to the kernel
	Timeout          uint32 // seconds
	Zone             uint16
	OpenedIn         uint16     // zone of the original direction, where answers are in the default one
	Unacked          bool       // TCP data waits for an acknowledgement
	ReplySrc         netip.Addr // who answers, if not Dst: a translated destination
	Type             uint8      // ICMP type if not echo request
	Proxied          bool       // as synproxy makes it
	NewSrc, NewDst   netip.Addr // what the kernel translates to, if valid; it then marks the entry
}

// Enter locks the calling goroutine to its thread and moves that to a new network namespace. The
// thread is never given back: it ends with the goroutine, and the namespace with the thread and
// whatever was opened in it.
func Enter() error {
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("make a network namespace: %w", err)
	}
	return nil
}

// Fill makes the flows in the table of the calling thread's namespace and returns how many the
// kernel took. The first refusal is the error; those that follow are still tried.
func Fill(flows iter.Seq[Flow]) (made int, err error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return 0, fmt.Errorf("open netlink socket: %w", err)
	}
	defer unix.Close(fd)
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8<<20)
	_ = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1)
	var batch []byte
	n := 0
	flush := func() {
		refused, e := send(fd, batch)
		if err == nil {
			err = e
		}
		made += n - refused
		batch, n = batch[:0], 0
	}
	for f := range flows {
		m, e := f.message()
		if e != nil {
			return made, e
		}
		batch = append(batch, m...)
		if n++; n == 256 {
			if flush(); err != nil && made == 0 {
				return made, err
			}
		}
	}
	flush()
	return made, err
}

// send hands a batch to the kernel and counts what it refused.
func send(fd int, batch []byte) (refused int, err error) {
	if len(batch) == 0 {
		return 0, nil
	}
	if _, err := unix.Write(fd, batch); err != nil {
		return 0, fmt.Errorf("create entries: %w", err)
	}
	var buf [4096]byte
	for {
		n, _, e := unix.Recvfrom(fd, buf[:], unix.MSG_DONTWAIT)
		if e == unix.EAGAIN {
			return refused, err
		}
		if e != nil {
			return refused, fmt.Errorf("create entries: %w", e)
		}
		if n >= 20 {
			refused++
			errno := unix.Errno(-int32(binary.NativeEndian.Uint32(buf[16:])))
			err = fmt.Errorf("create entry: %w", errno)
		}
	}
}

// Attribute numbers: include/uapi/linux/netfilter/nfnetlink_conntrack.h.
func (f Flow) message() ([]byte, error) {
	family := byte(unix.AF_INET6)
	if f.Src.Is4() {
		family = unix.AF_INET
	}
	ae := netlink.NewAttributeEncoder()
	ae.ByteOrder = binary.BigEndian
	ae.Nested(1, func(ae *netlink.AttributeEncoder) error {
		err := f.tuple(ae, f.Src, f.Dst, f.SrcPort, f.DstPort, false)
		if f.OpenedIn != 0 {
			ae.Uint16(3, f.OpenedIn)
		}
		return err
	})
	replySrc := f.Dst
	if f.ReplySrc.IsValid() {
		replySrc = f.ReplySrc
	}
	ae.Nested(2, func(ae *netlink.AttributeEncoder) error {
		return f.tuple(ae, replySrc, f.Src, f.DstPort, f.SrcPort, true)
	})
	ae.Uint32(3, f.Status|confirmed)
	ae.Uint32(7, f.Timeout)
	if f.Zone != 0 {
		ae.Uint16(18, f.Zone)
	}
	f.nat(ae)
	f.protoInfo(ae)
	if f.Proxied {
		ae.Nested(24, func(ae *netlink.AttributeEncoder) error { // the cookie, and what timestamps are to be shifted by
			for kind := range uint16(3) {
				ae.Uint32(1+kind, 7)
			}
			return nil
		})
	}
	attrs, err := ae.Encode()
	if err != nil {
		return nil, fmt.Errorf("encode flow: %w", err)
	}
	return netlink.Message{
		Header: netlink.Header{
			Length: uint32(16 + 4 + len(attrs)),
			Type:   1 << 8,
			Flags:  netlink.Request | netlink.Create | netlink.Excl,
		},
		Data: append([]byte{family, 0, 0, 0}, attrs...),
	}.MarshalBinary()
}

func (f Flow) tuple(ae *netlink.AttributeEncoder, src, dst netip.Addr, srcPort, dstPort uint16, reply bool) error {
	ae.Nested(1, func(ae *netlink.AttributeEncoder) error {
		if src.Is4() {
			ae.Bytes(1, src.AsSlice())
			ae.Bytes(2, dst.AsSlice())
		} else {
			ae.Bytes(3, src.AsSlice())
			ae.Bytes(4, dst.AsSlice())
		}
		return nil
	})
	ae.Nested(2, func(ae *netlink.AttributeEncoder) error {
		ae.Uint8(1, f.Proto)
		switch f.Proto {
		case unix.IPPROTO_ICMP:
			f.icmp(ae, 4, 8, 0, reply)
		case unix.IPPROTO_ICMPV6:
			f.icmp(ae, 7, 128, 129, reply)
		case unix.IPPROTO_TCP, unix.IPPROTO_UDP, unix.IPPROTO_SCTP, unix.IPPROTO_GRE, unix.IPPROTO_UDPLITE:
			ae.Uint16(2, srcPort)
			ae.Uint16(3, dstPort)
		}
		return nil
	})
	return nil
}

// icmp writes id, type and code, whose attributes follow each other for both families.
func (f Flow) icmp(ae *netlink.AttributeEncoder, first uint16, request, answer uint8, reply bool) {
	if f.Type != 0 {
		request, answer = f.Type, f.Type+1
	}
	kind := request
	if reply {
		kind = answer
	}
	ae.Uint16(first, f.SrcPort)
	ae.Uint8(first+1, kind)
	ae.Uint8(first+2, 0)
}

// nat writes the translations, CTA_NAT_SRC and CTA_NAT_DST, each an address without a port.
func (f Flow) nat(ae *netlink.AttributeEncoder) {
	for kind, to := range map[uint16]netip.Addr{6: f.NewSrc, 13: f.NewDst} {
		if !to.IsValid() {
			continue
		}
		ae.Nested(kind, func(ae *netlink.AttributeEncoder) error {
			if to.Is4() {
				ae.Bytes(1, to.AsSlice())
			} else {
				ae.Bytes(4, to.AsSlice())
			}
			return nil
		})
	}
}

func (f Flow) protoInfo(ae *netlink.AttributeEncoder) {
	if f.State == 0 {
		return
	}
	ae.Nested(4, func(ae *netlink.AttributeEncoder) error {
		switch f.Proto {
		case unix.IPPROTO_TCP:
			ae.Nested(1, func(ae *netlink.AttributeEncoder) error {
				ae.Uint8(1, f.State)
				if f.Unacked {
					ae.Bytes(4, []byte{0x10, 0x10})
				}
				return nil
			})
		case unix.IPPROTO_SCTP:
			ae.Nested(3, func(ae *netlink.AttributeEncoder) error {
				ae.Uint8(1, f.State)
				ae.Uint32(2, 1)
				ae.Uint32(3, 2)
				return nil
			})
		}
		return nil
	})
}
