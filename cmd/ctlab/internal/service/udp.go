package service

import (
	"context"
	"fmt"
	"net"
	"syscall"

	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
)

const (
	udpBatch  = 128
	udpBuffer = 32 << 20
)

// udpEcho sends every datagram back, from the address that it was sent to: a host with several would
// otherwise answer from its first, and nobody would take that for an answer.
type udpEcho struct {
	conn *net.UDPConn
	msgs []ipv6.Message
}

func newUDPEcho(port int) (*udpEcho, error) {
	var opt error
	lc := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		return raw.Control(func(fd uintptr) {
			opt = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, udpBuffer)
		})
	}}
	pc, err := lc.ListenPacket(context.Background(), "udp", fmt.Sprintf("[::]:%d", port))
	if err != nil {
		return nil, fmt.Errorf("listen on udp port %d: %w", port, err)
	}
	if opt != nil {
		return nil, fmt.Errorf("size the receive buffer: %w", opt)
	}
	e := &udpEcho{conn: pc.(*net.UDPConn), msgs: make([]ipv6.Message, udpBatch)}
	for i := range e.msgs {
		e.msgs[i].Buffers = [][]byte{make([]byte, readMax)}
		e.msgs[i].OOB = ipv6.NewControlMessage(ipv6.FlagDst)
	}
	if err := ipv6.NewPacketConn(pc).SetControlMessage(ipv6.FlagDst, true); err != nil {
		return nil, fmt.Errorf("learn where datagrams were sent to: %w", err)
	}
	return e, nil
}

func (e *udpEcho) serve(ctx context.Context) {
	stop := context.AfterFunc(ctx, func() { _ = e.conn.Close() })
	defer stop()
	p := ipv6.NewPacketConn(e.conn)
	out := make([]ipv6.Message, udpBatch)
	for {
		n, err := p.ReadBatch(e.msgs, 0)
		if err != nil {
			if ctx.Err() != nil {
				return
			}
			continue
		}
		for i := range n {
			m := &e.msgs[i]
			out[i] = ipv6.Message{Buffers: [][]byte{m.Buffers[0][:m.N]}, OOB: answerFrom(m), Addr: m.Addr}
		}
		for at := 0; at < n; {
			w, err := p.WriteBatch(out[at:n], 0)
			if err != nil || w == 0 {
				w = 1 // the datagram that failed; the rest go on
			}
			at += w
		}
	}
}

// answerFrom is what makes the answer to a datagram leave from the address that it came to.
func answerFrom(m *ipv6.Message) []byte {
	var cm ipv6.ControlMessage
	if cm.Parse(m.OOB[:m.NN]) != nil || cm.Dst == nil {
		return nil
	}
	return (&ipv6.ControlMessage{Src: cm.Dst}).Marshal()
}
