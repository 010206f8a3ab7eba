package round

import (
	"errors"
	"fmt"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"

	"ctguard/cmd/ctlab/internal/ns"
	"ctguard/cmd/ctlab/internal/service"
)

// Ends are both ends of the traffic: sockets in the clients' namespace and in a server's.
type Ends struct {
	clients *ns.Namespace
	from    []netip.Addr // the clients' addresses, used in turn
	to      []netip.Addr // the server's, likewise; questions and the stream go to the first

	question, answer int    // UDP sockets of the client and the server
	web, sink        int    // listening
	stream           [2]int // the bulk stream's ends, -1 while there is none
	next             int    // connections so far
	data             [piece]byte
}

// patience is after how many seconds a round has failed.
const patience = 1

// Open makes the sockets; all addresses are IPv4. The server's ports are those of the lab's services, which must not
// run there.
func Open(clients, server *ns.Namespace, from, to []netip.Addr) (*Ends, error) {
	e := &Ends{clients: clients, from: from, to: to, question: -1, answer: -1, web: -1, sink: -1, stream: [2]int{-1, -1}}
	err := server.Do(func() (err error) {
		if e.answer, err = socket(unix.SOCK_DGRAM); err != nil {
			return err
		}
		any4 := netip.IPv4Unspecified()
		if err := unix.Bind(e.answer, address(any4, service.UDPPort)); err != nil {
			return os.NewSyscallError("bind", err)
		}
		if e.web, err = listen(any4, service.HTTPPort); err != nil {
			return err
		}
		e.sink, err = listen(any4, service.SinkPort)
		return err
	})
	if err == nil {
		err = clients.Do(func() (err error) {
			e.question, err = dial(unix.SOCK_DGRAM, from[0], to[0], service.UDPPort)
			return err
		})
	}
	if err != nil {
		e.Close()
		return nil, fmt.Errorf("open both ends: %w", err)
	}
	return e, nil
}

// Close ends everything.
func (e *Ends) Close() {
	for _, fd := range []int{e.question, e.answer, e.web, e.sink} {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
	}
}

// socket makes a socket that waits for no longer than patience.
func socket(kind int) (int, error) {
	fd, err := unix.Socket(unix.AF_INET, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	wait := unix.Timeval{Sec: patience}
	err = errors.Join(unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &wait),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &wait))
	if err != nil {
		return -1, errors.Join(os.NewSyscallError("setsockopt", err), unix.Close(fd))
	}
	return fd, nil
}

func listen(a netip.Addr, port uint16) (int, error) {
	fd, err := socket(unix.SOCK_STREAM)
	if err != nil {
		return -1, err
	}
	if err := unix.Bind(fd, address(a, port)); err != nil {
		return -1, errors.Join(os.NewSyscallError("bind", err), unix.Close(fd))
	}
	if err := unix.Listen(fd, unix.SOMAXCONN); err != nil {
		return -1, errors.Join(os.NewSyscallError("listen", err), unix.Close(fd))
	}
	return fd, nil
}

// dial connects a socket of the calling thread's namespace.
func dial(kind int, from, to netip.Addr, port uint16) (int, error) {
	fd, err := socket(kind)
	if err != nil {
		return -1, err
	}
	// The port is chosen when the other end is known, or each address would have ports for a minute only.
	if err := unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1); err != nil {
		return -1, errors.Join(os.NewSyscallError("setsockopt", err), unix.Close(fd))
	}
	if err := unix.Bind(fd, address(from, 0)); err != nil {
		return -1, errors.Join(os.NewSyscallError("bind", err), unix.Close(fd))
	}
	// Once more is right here too: it goes on to wait for the same connection.
	if err := uninterrupted(func() error { return unix.Connect(fd, address(to, port)) }); err != nil {
		return -1, errors.Join(os.NewSyscallError("connect", err), unix.Close(fd))
	}
	return fd, nil
}

func address(a netip.Addr, port uint16) *unix.SockaddrInet4 {
	return &unix.SockaddrInet4{Port: int(port), Addr: a.As4()}
}

// uninterrupted makes a call until no signal interrupts it. The Go runtime sends its threads signals, and calls on a
// socket with a timeout are never restarted (signal(7)).
func uninterrupted(call func() error) error {
	for {
		if err := call(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

func write(fd int, data []byte) (n int, err error) {
	err = uninterrupted(func() (err error) { n, err = unix.Write(fd, data); return err })
	return n, err
}

func read(fd int, data []byte) (n int, err error) {
	err = uninterrupted(func() (err error) { n, err = unix.Read(fd, data); return err })
	return n, err
}

func accept(listener, flags int) (fd int, err error) {
	err = uninterrupted(func() (err error) { fd, _, err = unix.Accept4(listener, unix.SOCK_CLOEXEC|flags); return err })
	return fd, err
}

// poll waits until there is something to read; false if there is nothing within wait, in milliseconds.
func poll(fd, wait int) (ready bool, err error) {
	waiting := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	err = uninterrupted(func() error {
		n, err := unix.Poll(waiting, wait)
		ready = n > 0
		return err
	})
	return ready, err
}
