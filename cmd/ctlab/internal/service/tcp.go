package service

import (
	"context"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"
)

const (
	backlog   = 65535
	acceptMax = 64
	pollMs    = 200
	readMax   = 2048
)

// kind is what is served on a connection.
type kind uint8

const (
	none kind = iota
	httpListener
	echoListener
	speakListener
	sinkListener
	httpConn
	echoConn
	speakConn
	sinkConn
)

// toConn is from a listener's kind to that of its connections.
const toConn = httpConn - httpListener

var response = []byte("HTTP/1.1 200 OK\r\n" +
	"Content-Type: text/plain\r\nContent-Length: 3\r\nConnection: close\r\n\r\nok\n")

// tcpServer serves all TCP ports from one epoll descriptor. Connections that send
// nothing stay open: holding them is what an ordinary server does for a minute, and
// closing them early would take the attack's entries out of the table.
type tcpServer struct {
	poll     int
	kinds    []kind // by descriptor
	buf      [readMax]byte
	discard  [1 << 20]byte
	held     holder
	audience audience
}

func newTCPServer(files int) (*tcpServer, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make epoll: %w", err)
	}
	return &tcpServer{poll: fd, kinds: make([]kind, 1024), held: holder{limit: files - spareFiles}}, nil
}

func (s *tcpServer) listen(port int, k kind) error {
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open socket: %w", err)
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		return fmt.Errorf("reuse address: %w", err)
	}
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 0); err != nil {
		return fmt.Errorf("serve both families: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrInet6{Port: port}); err != nil {
		return fmt.Errorf("bind tcp port %d: %w", port, err)
	}
	if err := unix.Listen(fd, backlog); err != nil {
		return fmt.Errorf("listen on tcp port %d: %w", port, err)
	}
	return s.add(fd, k)
}

func (s *tcpServer) add(fd int, k kind) error {
	for fd >= len(s.kinds) {
		s.kinds = append(s.kinds, make([]kind, len(s.kinds))...)
	}
	s.kinds[fd] = k
	ev := unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)}
	if err := unix.EpollCtl(s.poll, unix.EPOLL_CTL_ADD, fd, &ev); err != nil {
		return fmt.Errorf("watch descriptor: %w", err)
	}
	return nil
}

func (s *tcpServer) serve(ctx context.Context) {
	events := make([]unix.EpollEvent, 256)
	for ctx.Err() == nil {
		s.speak()
		n, err := unix.EpollWait(s.poll, events, pollMs)
		if err != nil {
			continue // interrupted
		}
		for _, ev := range events[:n] {
			fd := int(ev.Fd)
			switch k := s.kinds[fd]; k {
			case httpListener, echoListener, speakListener, sinkListener:
				s.accept(fd, k+toConn)
			case httpConn, echoConn, speakConn:
				s.answer(fd, k)
			case sinkConn:
				s.sink(fd)
			case none: // closed by an event before this one
			}
		}
	}
}

func (s *tcpServer) accept(listener int, k kind) {
	for range acceptMax {
		fd, _, err := unix.Accept4(listener, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
		if err != nil {
			return
		}
		if err := s.add(fd, k); err != nil {
			_ = unix.Close(fd)
			continue
		}
		switch k {
		case httpConn:
			s.hold(fd)
		case speakConn:
			s.greet(fd)
		default:
		}
	}
}

// answer reads what came and replies. Requests and lines of the lab fit into one
// segment, so a partial read is an error of the peer's and ends the connection.
func (s *tcpServer) answer(fd int, k kind) {
	n, err := unix.Read(fd, s.buf[:])
	if err == unix.EAGAIN || err == unix.EINTR {
		return
	}
	if err != nil || n <= 0 {
		s.close(fd)
		return
	}
	reply := s.buf[:n]
	if k == httpConn {
		reply = response
	}
	if _, err := unix.Write(fd, reply); err != nil || k == httpConn {
		s.close(fd)
	}
}

// sink takes what came without looking at it: MSG_TRUNC spares the copy.
func (s *tcpServer) sink(fd int) {
	n, _, err := unix.Recvfrom(fd, s.discard[:], unix.MSG_TRUNC)
	if err == unix.EAGAIN || err == unix.EINTR {
		return
	}
	if err != nil || n <= 0 {
		s.close(fd)
	}
}

func (s *tcpServer) close(fd int) {
	switch s.kinds[fd] {
	case httpConn:
		s.held.drop(fd)
	case speakConn:
		s.audience.conns = slices.DeleteFunc(s.audience.conns, func(c int) bool { return c == fd })
	default:
	}
	s.kinds[fd] = none
	_ = unix.Close(fd)
}
