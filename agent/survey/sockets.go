package survey

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"syscall"

	"golang.org/x/sys/unix"
)

// Constants of include/uapi/linux/sock_diag.h, inet_diag.h and tcp.h.
const (
	sockDiagByFamily    = 20
	inetDiagReqBytecode = 1
	inetDiagJump        = 1
	inetDiagSportGE     = 2
	inetDiagSportLE     = 3
	inetDiagInfo        = 2
	sizeofInetDiagReq   = 56
	sizeofInetDiagMsg   = 72
	tcpInfoOptWindow    = 4 // TCPI_OPT_WSCALE
)

// States of a socket as bits: include/net/tcp_states.h.
const (
	stateEstablished = 1 << 1
	stateFinWait1    = 1 << 4
	stateFinWait2    = 1 << 5
	stateClose       = 1 << 7 // UDP sockets that are not connected
	stateCloseWait   = 1 << 8
	stateLastAck     = 1 << 9
	stateListen      = 1 << 10
	stateClosing     = 1 << 11
)

// Connection is one socket of this host, by its two ends.
type Connection struct {
	Local, Remote netip.AddrPort
}

// Scales are the window scales of a TCP connection (RFC 7323, 2), as shifts.
type Scales struct {
	Agreed        bool  // both sides sent the option; else the windows are not scaled
	Local, Remote uint8 // what each side announced for its own window
}

// query says which sockets to list.
type query struct {
	protocol uint8
	states   uint32   // a bit set
	ports    []uint16 // local ports; none means all
	info     bool     // ask for struct tcp_info as well
}

// Live is what the kernel says of one socket.
type Live struct {
	Connection
	Scales   Scales // of TCP
	UID      uint32 // whose the socket is
	Device   uint32 // the interface that it is bound to, by index; 0 for none
	Outgoing bool   // nothing listens on the local port; [Host.Established] alone finds out
}

// list calls each for every socket that q asks for until it returns false; see sock_diag(7). It
// holds one datagram at a time, so that a hundred thousand connections take no memory.
func (q query) list(each func(Live) bool) error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return fmt.Errorf("list sockets: %w", err)
	}
	defer unix.Close(fd)
	_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 10}) // the kernel answers at once
	// no datagram of a dump is larger
	buf := make([]byte, 32<<10)
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		if _, err := unix.Write(fd, q.request(family)); err != nil {
			return fmt.Errorf("list sockets: %w", err)
		}
		more, err := receiveSockets(fd, buf, each)
		if err != nil {
			return fmt.Errorf("list sockets: %w", err)
		}
		if !more {
			return nil
		}
	}
	return nil
}

// request is a struct inet_diag_req_v2 with its netlink header.
func (q query) request(family uint8) []byte {
	b := make([]byte, unix.SizeofNlMsghdr+sizeofInetDiagReq)
	binary.NativeEndian.PutUint16(b[4:], sockDiagByFamily)
	binary.NativeEndian.PutUint16(b[6:], unix.NLM_F_REQUEST|unix.NLM_F_DUMP)
	body := b[unix.SizeofNlMsghdr:]
	body[0], body[1] = family, q.protocol
	if q.info {
		body[2] = 1 << (inetDiagInfo - 1)
	}
	binary.NativeEndian.PutUint32(body[4:], q.states)
	b = append(b, portFilter(q.ports)...)
	binary.NativeEndian.PutUint32(b, uint32(len(b)))
	return b
}

// mostFiltered is how many ports the kernel is asked to look for; it tries each with every socket.
const mostFiltered = 64

// portFilter returns an attribute with a program that lets some local ports through, as ss(8) writes
// them: of each port, "at least p", "at most p" and a jump to the end, which accepts. A failed test
// goes on with the next port, and 4 bytes beyond the end after the last, which rejects. Of no or too
// many ports it returns nothing, which lets all through.
func portFilter(ports []uint16) []byte {
	const size = 8 + 8 + 4
	if len(ports) == 0 || len(ports) > mostFiltered {
		return nil
	}
	length := size * len(ports)
	a := make([]byte, 4+length)
	binary.NativeEndian.PutUint16(a, uint16(len(a)))
	binary.NativeEndian.PutUint16(a[2:], inetDiagReqBytecode)
	for i, port := range ports {
		end := uint16(length - size*i) // from where this port's tests begin
		next := uint16(size)
		if i == len(ports)-1 {
			next = end + 4
		}
		tests := a[4+size*i:]
		putTest(tests, inetDiagSportGE, 8, next, port)
		putTest(tests[8:], inetDiagSportLE, 8, next-8, port)
		putTest(tests[16:20], inetDiagJump, 4, end-16, 0)
	}
	return a
}

// putTest writes a struct inet_diag_bc_op: how far it is to the next one if the test holds and if not.
// A test of a port has that behind it, in another.
func putTest(b []byte, code, yes uint8, no, port uint16) {
	b[0], b[1] = code, yes
	binary.NativeEndian.PutUint16(b[2:], no)
	if code != inetDiagJump {
		binary.NativeEndian.PutUint16(b[6:], port)
	}
}

// receiveSockets reads one answer and says whether each wants more.
func receiveSockets(fd int, buf []byte, each func(Live) bool) (more bool, err error) {
	for {
		n, _, err := unix.Recvfrom(fd, buf, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return false, err
		}
		messages, err := syscall.ParseNetlinkMessage(buf[:n])
		if err != nil {
			return false, err
		}
		for _, m := range messages {
			switch m.Header.Type {
			case unix.NLMSG_DONE:
				return true, nil
			case unix.NLMSG_ERROR:
				if len(m.Data) >= 4 {
					return false, unix.Errno(-int32(binary.NativeEndian.Uint32(m.Data)))
				}
				return false, errors.New("the answer is cut off")
			}
			if s, ok := parseSocket(m.Data); ok && !each(s) {
				return false, nil
			}
		}
	}
}

// parseSocket reads one struct inet_diag_msg and the attributes behind it.
func parseSocket(b []byte) (Live, bool) {
	if len(b) < sizeofInetDiagMsg {
		return Live{}, false
	}
	address := func(b []byte) netip.Addr { return netip.AddrFrom16([16]byte(b)).Unmap() }
	if b[0] == unix.AF_INET {
		address = func(b []byte) netip.Addr { return netip.AddrFrom4([4]byte(b)) }
	}
	s := Live{Connection: Connection{
		Local:  netip.AddrPortFrom(address(b[8:]), binary.BigEndian.Uint16(b[4:])),
		Remote: netip.AddrPortFrom(address(b[24:]), binary.BigEndian.Uint16(b[6:])),
	}}
	s.Device = binary.NativeEndian.Uint32(b[40:])
	s.UID = binary.NativeEndian.Uint32(b[64:])
	for rest := b[sizeofInetDiagMsg:]; len(rest) >= 4; {
		n := int(binary.NativeEndian.Uint16(rest))
		if n < 4 || n > len(rest) {
			break
		}
		if binary.NativeEndian.Uint16(rest[2:]) == inetDiagInfo {
			s.parseInfo(rest[4:n])
		}
		rest = rest[min((n+3)&^3, len(rest)):]
	}
	return s, true
}

// parseInfo reads from struct tcp_info what the handshake agreed on. The two scales are bit fields of
// one byte, the peer's first.
func (s *Live) parseInfo(b []byte) {
	if len(b) < 7 || b[5]&tcpInfoOptWindow == 0 {
		return
	}
	s.Scales = Scales{Agreed: true, Local: b[6] >> 4, Remote: b[6] & 15}
	if binary.NativeEndian.Uint16([]byte{0, 1}) == 1 { // bit fields begin at the other end
		s.Scales.Local, s.Scales.Remote = s.Scales.Remote, s.Scales.Local
	}
}
