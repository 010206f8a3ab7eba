package flood

import (
	"fmt"
	"net"
	"unsafe"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"ctguard/cmd/ctlab/internal/packet"
)

const (
	batchMax  = 64
	frameMax  = 128
	rxBuffer  = 16 << 20
	rxTimeout = 100_000 // microseconds
)

// mmsghdr is struct mmsghdr: a message and how much of it was sent.
type mmsghdr struct {
	hdr unix.Msghdr
	n   uint32
	_   [4]byte
}

// sender writes frames in batches: one system call for up to batchMax packets.
type sender struct {
	fd   int
	buf  [batchMax][frameMax]byte
	iov  [batchMax]unix.Iovec
	msgs [batchMax]mmsghdr
	n    int

	sent, failed uint64
}

func newSender(iface *net.Interface) (*sender, error) {
	// Protocol zero: this socket sends only, nothing is queued on it.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open packet socket: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Ifindex: iface.Index}); err != nil {
		return nil, fmt.Errorf("bind packet socket to %s: %w", iface.Name, err)
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_QDISC_BYPASS, 1); err != nil {
		return nil, fmt.Errorf("bypass the queueing discipline: %w", err)
	}
	return &sender{fd: fd}, nil
}

// frame is the buffer of the next packet, empty.
func (s *sender) frame() []byte { return s.buf[s.n][:0] }

// push queues a frame that was built in the buffer from frame.
func (s *sender) push(b []byte) {
	s.iov[s.n].Base = unsafe.SliceData(b)
	s.iov[s.n].SetLen(len(b))
	s.msgs[s.n].hdr.Iov = &s.iov[s.n]
	s.msgs[s.n].hdr.SetIovlen(1)
	s.n++
	if s.n == batchMax {
		s.flush()
	}
}

// flush sends what is queued. Packets that the kernel refuses are counted, not
// sent again: a flood has no memory.
func (s *sender) flush() {
	for at := 0; at < s.n; {
		n, _, errno := unix.Syscall6(unix.SYS_SENDMMSG, uintptr(s.fd),
			uintptr(unsafe.Pointer(&s.msgs[at])), uintptr(s.n-at), 0, 0, 0)
		if errno == unix.EINTR {
			continue
		}
		if errno != 0 || n == 0 {
			s.failed++
			at++
			continue
		}
		s.sent += uint64(n)
		at += int(n)
	}
	s.n = 0
}

// newReceiver opens a socket that sees only incoming SYN-ACKs of one family.
func newReceiver(iface *net.Interface, ipv6 bool) (int, error) {
	ether := uint16(packet.EtherIPv4)
	if ipv6 {
		ether = packet.EtherIPv6
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open packet socket: %w", err)
	}
	if err := attachFilter(fd, ipv6); err != nil {
		return -1, err
	}
	// Root may pass the system's bound on socket buffers; without, the default has to do.
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, rxBuffer)
	tv := unix.Timeval{Usec: rxTimeout}
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv); err != nil {
		return -1, fmt.Errorf("set receive timeout: %w", err)
	}
	// Bound to one protocol rather than to all, the socket sees incoming packets only.
	addr := &unix.SockaddrLinklayer{Ifindex: iface.Index, Protocol: ether<<8 | ether>>8}
	if err := unix.Bind(fd, addr); err != nil {
		return -1, fmt.Errorf("bind packet socket to %s: %w", iface.Name, err)
	}
	return fd, nil
}

func attachFilter(fd int, ipv6 bool) error {
	protoAt, flagsAt := uint32(23), uint32(14+20+13)
	if ipv6 {
		protoAt, flagsAt = 20, 14+40+13
	}
	return packet.Attach(fd, []bpf.Instruction{
		bpf.LoadAbsolute{Off: protoAt, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: packet.ProtoTCP, SkipTrue: 4},
		bpf.LoadAbsolute{Off: flagsAt, Size: 1},
		bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: packet.SYN | packet.ACK | packet.RST},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: packet.SYN | packet.ACK, SkipTrue: 1},
		bpf.RetConstant{Val: frameMax},
		bpf.RetConstant{Val: 0},
	})
}
