package conntrack

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

const (
	headerLen = unix.SizeofNlMsghdr // struct nlmsghdr
	familyLen = 4                   // struct nfgenmsg
	attrLen   = 4                   // struct nlattr

	// The kernel fills dump messages up to the size of the reader's buffer, but never above 32 KiB
	// (netlink_recvmsg in net/netlink/af_netlink.c). Twice that leaves room for every message.
	receiveBuffer = 64 << 10

	// What the kernel may queue on a socket, in bytes as it accounts them. One batch of changes that
	// all fail is the most that ever waits there.
	queueBytes = 4 << 20

	// No answer for that long means that none will come. The kernel answers at once, from within
	// the call; only a host that is out of memory makes it skip an answer.
	answerTimeout = 10 * time.Second
)

// errTruncated says that a message did not fit its buffer, or ended within itself.
var errTruncated = errors.New("truncated netlink message")

// socket is one netlink socket that talks to ctnetlink. It is not safe for concurrent use.
type socket struct {
	fd  int
	seq uint32
}

// dial opens a socket in the calling thread's network namespace.
func dial() (*socket, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("open netlink socket: %w", err)
	}
	// SO_RCVBUFFORCE needs CAP_NET_ADMIN, which every request here needs too. What remains without
	// it is enough for a dump.
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, queueBytes)
	// A failed change is answered by its header alone, not by a copy of the request.
	_ = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1)
	timeout := unix.NsecToTimeval(answerTimeout.Nanoseconds())
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("set netlink receive timeout: %w", err)
	}
	return &socket{fd: fd}, nil
}

func (s *socket) close() error { return unix.Close(s.fd) }

// send hands whole messages to the kernel, which works on them before it returns.
func (s *socket) send(messages []byte) error {
	for {
		_, err := unix.Write(s.fd, messages)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("send to ctnetlink: %w", err)
		}
		return nil
	}
}

// receive reads one datagram into buf and returns the messages in it. The errors it returns are
// bare, so that callers can compare them: [unix.EAGAIN] when nothing came in time, [unix.ENOBUFS]
// when the kernel dropped answers.
func (s *socket) receive(buf []byte, flags int) ([]byte, error) {
	for {
		n, err := recv(s.fd, buf, flags|unix.MSG_TRUNC)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return nil, err
		case n > len(buf):
			return nil, errTruncated
		}
		return buf[:n], nil
	}
}

// acknowledged waits for the answer to a request with NLM_F_ACK and returns its error.
func (s *socket) acknowledged() error {
	var buf [4 << 10]byte
	datagram, err := s.receive(buf[:], 0)
	if err != nil {
		return fmt.Errorf("read answer of ctnetlink: %w", err)
	}
	m, _, err := nextMessage(datagram)
	if err != nil {
		return fmt.Errorf("read answer of ctnetlink: %w", err)
	}
	if errno := m.errorCode(); m.kind != unix.NLMSG_ERROR || errno != 0 {
		return fmt.Errorf("ctnetlink refused: %w", errno)
	}
	return nil
}

// message is one netlink message inside a datagram.
type message struct {
	kind    uint16
	flags   uint16
	seq     uint32
	payload []byte
}

// nextMessage splits the first message off a datagram. It never reads past it: a header that
// promises more than there is, or less than itself, is errTruncated.
func nextMessage(b []byte) (m message, rest []byte, err error) {
	if len(b) < headerLen {
		return m, nil, errTruncated
	}
	n := int(binary.NativeEndian.Uint32(b))
	if n < headerLen || n > len(b) {
		return m, nil, errTruncated
	}
	m.kind = binary.NativeEndian.Uint16(b[4:])
	m.flags = binary.NativeEndian.Uint16(b[6:])
	m.seq = binary.NativeEndian.Uint32(b[8:])
	m.payload = b[headerLen:n]
	return m, b[min(align(n), len(b)):], nil
}

// errorCode reads the errno of an NLMSG_ERROR, or of an NLMSG_DONE that carries one; 0 is success.
func (m message) errorCode() unix.Errno {
	if len(m.payload) < 4 {
		return 0
	}
	return unix.Errno(-int32(binary.NativeEndian.Uint32(m.payload)))
}

func align(n int) int { return (n + 3) &^ 3 }

// appendMessage appends the header of a request; closeMessage sets its length when the attributes
// have followed.
func appendMessage(b []byte, kind, flags uint16, seq uint32, family uint8) []byte {
	b = binary.NativeEndian.AppendUint32(b, headerLen+familyLen)
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = binary.NativeEndian.AppendUint16(b, unix.NLM_F_REQUEST|flags)
	b = binary.NativeEndian.AppendUint32(b, seq)
	return append(b, 0, 0, 0, 0 /* to the kernel */, family, 0, 0, 0)
}

func closeMessage(b []byte, start int) {
	binary.NativeEndian.PutUint32(b[start:], uint32(len(b)-start))
}

// appendAttr appends one attribute and its padding.
func appendAttr(b []byte, kind uint16, value ...byte) []byte {
	b = binary.NativeEndian.AppendUint16(b, uint16(attrLen+len(value)))
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = append(b, value...)
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	return b
}

// openNest begins an attribute that holds attributes; closeMessage's counterpart is closeNest.
func openNest(b []byte, kind uint16) (grown []byte, start int) {
	return appendAttr(b, kind|unix.NLA_F_NESTED), len(b)
}

func closeNest(b []byte, start int) {
	binary.NativeEndian.PutUint16(b[start:], uint16(len(b)-start))
}
