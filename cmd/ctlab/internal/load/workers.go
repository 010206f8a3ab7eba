package load

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// patience is when a round has failed: long enough for one repetition of TCP's, short enough not to
// take the whole measurement.
const patience = 300 * time.Millisecond

// udpWorker asks on one flow again and again.
type udpWorker struct {
	src  netip.Addr
	dst  netip.AddrPort
	conn *net.UDPConn
	buf  [64]byte
}

func (w *udpWorker) open() (err error) {
	w.conn, err = net.DialUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(w.src, 0)), net.UDPAddrFromAddrPort(w.dst))
	if err != nil {
		return fmt.Errorf("open udp socket: %w", err)
	}
	return nil
}

func (w *udpWorker) round() (uint64, error) {
	if err := w.conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return 0, err
	}
	if _, err := w.conn.Write([]byte("question")); err != nil {
		return 0, err
	}
	if _, err := w.conn.Read(w.buf[:]); err != nil {
		return 0, err
	}
	return 1, nil
}

func (w *udpWorker) close() { _ = w.conn.Close() }

// tcpWorker makes one connection after another, with all sources and to all targets.
type tcpWorker struct {
	spec Spec
	next int
	buf  [512]byte
}

var request = []byte("GET / HTTP/1.1\r\nHost: ctlab\r\nConnection: close\r\n\r\n")

func (w *tcpWorker) open() error { return nil }

func (w *tcpWorker) round() (uint64, error) {
	src := w.spec.Sources[w.next%len(w.spec.Sources)]
	dst := w.spec.Targets[w.next%len(w.spec.Targets)]
	w.next += w.spec.Workers
	deadline := time.Now().Add(patience)
	d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(src, 0)), Deadline: deadline, KeepAlive: -1}
	conn, err := d.Dial("tcp", dst.String())
	if err != nil {
		return 0, err
	}
	defer func() { _ = conn.Close() }()
	if err := conn.SetDeadline(deadline); err != nil {
		return 0, err
	}
	if _, err := conn.Write(request); err != nil {
		return 0, err
	}
	if _, err := conn.Read(w.buf[:]); err != nil { // one segment
		return 0, err
	}
	return 1, nil
}

func (w *tcpWorker) close() {}

// bulkWorker keeps one stream full.
type bulkWorker struct {
	src   netip.Addr
	dst   netip.AddrPort
	conn  *net.TCPConn
	acked uint64
	data  [256 << 10]byte
}

func (w *bulkWorker) open() (err error) {
	w.conn, err = net.DialTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(w.src, 0)), net.TCPAddrFromAddrPort(w.dst))
	if err != nil {
		return fmt.Errorf("open bulk stream: %w", err)
	}
	return nil
}

// round writes some data and returns how much more the server has by now.
func (w *bulkWorker) round() (uint64, error) {
	if err := w.conn.SetWriteDeadline(time.Now().Add(patience)); err != nil {
		return 0, err
	}
	_, failed := w.conn.Write(w.data[:])
	raw, err := w.conn.SyscallConn()
	if err != nil {
		return 0, err
	}
	var info *unix.TCPInfo
	var fault error
	err = raw.Control(func(fd uintptr) { info, fault = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO) })
	if err := errors.Join(err, fault); err != nil {
		return 0, fmt.Errorf("read the state of the stream: %w", err)
	}
	n := info.Bytes_acked - w.acked
	w.acked = info.Bytes_acked
	return n, failed
}

func (w *bulkWorker) close() { _ = w.conn.Close() }
