package workload

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"ctguard/cmd/ctlab/internal/service"
)

// overlay asks by way of a tunnel: each question has a port of its own, and all answers come to the tunnel's port.
type overlay struct {
	conn    *net.UDPConn
	mu      sync.Mutex
	last    uint64
	waiting map[uint64]chan struct{}
}

func newOverlay() (*overlay, error) {
	conn, err := net.ListenUDP("udp", &net.UDPAddr{Port: service.OverlayPort})
	if err != nil {
		return nil, fmt.Errorf("listen on udp port %d: %w", service.OverlayPort, err)
	}
	return &overlay{conn: conn, waiting: make(map[uint64]chan struct{})}, nil
}

// receive takes answers until the socket is closed.
func (o *overlay) receive() {
	var buf [64]byte
	for {
		n, err := o.conn.Read(buf[:])
		if err != nil {
			return
		}
		if n == 8 {
			o.mu.Lock()
			if answered := o.waiting[binary.BigEndian.Uint64(buf[:])]; answered != nil {
				close(answered)
				delete(o.waiting, binary.BigEndian.Uint64(buf[:]))
			}
			o.mu.Unlock()
		}
	}
}

// request is one question, with one answer.
func (o *overlay) request(src, dst netip.Addr, patience time.Duration) error {
	answered := make(chan struct{})
	o.mu.Lock()
	o.last++
	id := o.last
	o.waiting[id] = answered
	o.mu.Unlock()
	conn, err := net.DialUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(src, 0)),
		net.UDPAddrFromAddrPort(netip.AddrPortFrom(dst, service.OverlayPort)))
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	if _, err := conn.Write(binary.BigEndian.AppendUint64(nil, id)); err != nil {
		return err
	}
	select {
	case <-answered:
		return nil
	case <-time.After(patience):
		o.mu.Lock()
		delete(o.waiting, id)
		o.mu.Unlock()
		return fmt.Errorf("ask through the tunnel: %w", context.DeadlineExceeded)
	}
}
