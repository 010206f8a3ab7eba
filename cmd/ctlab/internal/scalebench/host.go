package scalebench

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"ctguard/agent/conntrack/conntrackfill"
	"ctguard/cmd/ctlab/internal/ns"
)

// host is a network namespace with something in it.
type host struct {
	*ns.Namespace
	files []int // what listens or is connected
}

// own is the address that clients ask.
var own = netip.MustParsePrefix("198.51.100.1/32")

const (
	askedPort      = 443   // of the entries; nothing listens there, so no selector frees them
	firstService   = 20000 // the ports of services
	tcpEstablished = 3     // enum tcp_conntrack
	// connections by each address of the loopback interface: the kernel looks for a free local port one by one
	perAddress = 4000
)

func newHost(z Size) (h *host, err error) {
	h = &host{}
	if h.Namespace, err = ns.New("scale"); err != nil {
		return nil, err
	}
	if err := h.Do(func() error { return h.fill(z) }); err != nil {
		h.close()
		return nil, err
	}
	return h, nil
}

func (h *host) close() {
	for _, fd := range h.files {
		_ = unix.Close(fd) // only held
	}
	h.Close()
}

func (h *host) fill(z Size) error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	address := &netlink.Addr{IPNet: ns.IPNet(own)}
	if err := errors.Join(netlink.LinkSetUp(lo), netlink.AddrAdd(lo, address)); err != nil {
		return fmt.Errorf("set up the loopback interface: %w", err)
	}
	for i := range z.Services {
		if _, err := h.listen(uint16(firstService + i)); err != nil {
			return err
		}
	}
	if err := h.connect(z.Sockets / 2); err != nil {
		return err
	}
	made, err := conntrackfill.Fill(flows(z))
	if err == nil && made != z.Entries {
		err = fmt.Errorf("the table took %d of %d entries", made, z.Entries)
	}
	return err
}

// flows are what the sources hold, each as many as the others: established connections.
func flows(z Size) func(yield func(conntrackfill.Flow) bool) {
	return func(yield func(conntrackfill.Flow) bool) {
		for i := range z.Entries {
			var source [4]byte
			binary.BigEndian.PutUint32(source[:], 10<<24+uint32(i%z.Sources))
			f := conntrackfill.Flow{Src: netip.AddrFrom4(source), Dst: own.Addr(), Proto: unix.IPPROTO_TCP,
				SrcPort: uint16(1024 + i/z.Sources), DstPort: askedPort, State: tcpEstablished,
				Status: conntrackfill.SeenReply | conntrackfill.Assured, Timeout: 400_000}
			if !yield(f) {
				return
			}
		}
	}
}

// listen opens a TCP service on all addresses.
func (h *host) listen(port uint16) (int, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, os.NewSyscallError("socket", err)
	}
	h.files = append(h.files, fd)
	if err := unix.Bind(fd, &unix.SockaddrInet4{Port: int(port)}); err != nil {
		return 0, os.NewSyscallError("bind", err)
	}
	return fd, os.NewSyscallError("listen", unix.Listen(fd, 1024))
}

// parcel is how many descriptors one message can carry: SCM_MAX_FD in include/net/scm.h is 253.
const parcel = 250

// connect opens so many connections within the host, with both their ends. They are more than a process may have open,
// so they wait in messages that nobody receives.
func (h *host) connect(pairs int) error {
	if pairs == 0 {
		return nil
	}
	listener, err := h.listen(firstService - 1)
	if err != nil {
		return err
	}
	keep, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socketpair", err)
	}
	h.files = append(h.files, keep[:]...)
	if err := unix.SetsockoptInt(keep[0], unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 16<<20); err != nil {
		return os.NewSyscallError("setsockopt", err)
	}
	for first := 0; first < pairs; first += parcel / 2 {
		var ends []int
		for i := first; i < min(pairs, first+parcel/2) && err == nil; i++ {
			var two [2]int
			two, err = pair(listener, byte(1+i/perAddress))
			ends = append(ends, two[:]...)
		}
		if err == nil {
			err = os.NewSyscallError("sendmsg", unix.Sendmsg(keep[0], []byte{0}, unix.UnixRights(ends...), nil, 0))
		}
		for _, fd := range ends {
			_ = unix.Close(fd) // the message holds it
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// pair connects to the listener by one of the loopback interface's addresses.
func pair(listener int, address byte) (ends [2]int, err error) {
	if ends[0], err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
		return ends, os.NewSyscallError("socket", err)
	}
	to := &unix.SockaddrInet4{Port: firstService - 1, Addr: [4]byte{127, 0, address, 1}}
	if err = unix.Connect(ends[0], to); err != nil {
		return ends, os.NewSyscallError("connect", err)
	}
	ends[1], _, err = unix.Accept4(listener, unix.SOCK_CLOEXEC)
	return ends, os.NewSyscallError("accept", err)
}
