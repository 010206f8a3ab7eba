package service

import (
	"context"
	"fmt"
	"net"
	"net/netip"
)

// OverlayPort is where an overlay sends to, in both directions.
const OverlayPort = 4789

// overlay answers as the far end of a tunnel does: to the overlay's port of whoever asked, from a port that belongs to
// the conversation inside (RFC 7348, section 5). So conntrack sees two flows, and no answers to either.
type overlay struct{ conn *net.UDPConn }

func newOverlay() (*overlay, error) {
	conn, err := net.ListenUDP("udp", &net.UDPAddr{Port: OverlayPort})
	if err != nil {
		return nil, fmt.Errorf("listen on udp port %d: %w", OverlayPort, err)
	}
	return &overlay{conn}, nil
}

func (o *overlay) serve(ctx context.Context) {
	stop := context.AfterFunc(ctx, func() { _ = o.conn.Close() })
	defer stop()
	buf := make([]byte, readMax)
	for {
		n, from, err := o.conn.ReadFromUDPAddrPort(buf)
		if err != nil {
			if ctx.Err() != nil {
				return
			}
			continue
		}
		back := netip.AddrPortFrom(from.Addr().Unmap(), OverlayPort)
		answer, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(back))
		if err != nil {
			continue // it is lost, as a packet may be
		}
		_, _ = answer.Write(buf[:n])
		_ = answer.Close()
	}
}
