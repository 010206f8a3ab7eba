package host

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Constants of include/uapi/linux/sock_diag.h, inet_diag.h and include/net/tcp_states.h.
const (
	sockDiagByFamily    = 20
	inetDiagReqBytecode = 1
	inetDiagSportGE     = 2
	inetDiagSportLE     = 3
	sizeofInetDiagReq   = 56
	sizeofInetDiagMsg   = 72

	stateEstablished = 1 << 1
	stateClose       = 1 << 7 // UDP sockets that are not connected
	stateListen      = 1 << 10
)

// Connection is one socket of this host, by its two ends.
type Connection struct {
	Local, Remote netip.AddrPort
}

// sockets calls each for every socket of a protocol in one of the states (a bit set), of local port
// port only where that is not 0; see sock_diag(7).
func sockets(protocol uint8, states uint32, port uint16, each func(Connection)) error {
	conn, err := netlink.Dial(unix.NETLINK_SOCK_DIAG, nil)
	if err != nil {
		return fmt.Errorf("list sockets: %w", err)
	}
	defer conn.Close()
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		request := make([]byte, sizeofInetDiagReq, sizeofInetDiagReq+20)
		request[0], request[1] = family, protocol
		binary.NativeEndian.PutUint32(request[4:], states)
		if port != 0 {
			request = append(request, portFilter(port)...)
		}
		messages, err := conn.Execute(netlink.Message{
			Header: netlink.Header{Type: sockDiagByFamily, Flags: netlink.Request | netlink.Dump},
			Data:   request,
		})
		if err != nil {
			return fmt.Errorf("list sockets: %w", err)
		}
		for _, m := range messages {
			if s, ok := parseSocket(m.Data); ok {
				each(s)
			}
		}
	}
	return nil
}

// portFilter returns an attribute with a program that lets one local port through, as ss(8) writes
// them: port >= p and port <= p; a failed test jumps 4 bytes beyond the end, which rejects.
func portFilter(port uint16) []byte {
	const length = 16
	a := make([]byte, 4+length)
	binary.NativeEndian.PutUint16(a, 4+length)
	binary.NativeEndian.PutUint16(a[2:], inetDiagReqBytecode)
	for i, code := range []byte{inetDiagSportGE, inetDiagSportLE} {
		op := a[4+8*i:]
		op[0], op[1] = code, 8
		binary.NativeEndian.PutUint16(op[2:], uint16(length-8*i+4))
		binary.NativeEndian.PutUint16(op[6:], port)
	}
	return a
}

// parseSocket reads one struct inet_diag_msg.
func parseSocket(b []byte) (Connection, bool) {
	if len(b) < sizeofInetDiagMsg {
		return Connection{}, false
	}
	address := func(b []byte) netip.Addr { return netip.AddrFrom16([16]byte(b)).Unmap() }
	if b[0] == unix.AF_INET {
		address = func(b []byte) netip.Addr { return netip.AddrFrom4([4]byte(b)) }
	}
	return Connection{
		Local:  netip.AddrPortFrom(address(b[8:]), binary.BigEndian.Uint16(b[4:])),
		Remote: netip.AddrPortFrom(address(b[24:]), binary.BigEndian.Uint16(b[6:])),
	}, true
}
