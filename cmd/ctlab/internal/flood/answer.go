package flood

import (
	"context"
	"time"

	"golang.org/x/sys/unix"

	"ctguard/cmd/ctlab/internal/packet"
)

// answer completes handshakes: each SYN-ACK that comes back gets its ACK. All it
// needs to know stands in the SYN-ACK itself, so a connection costs no memory here,
// as it costs a bot next to none.
func (f *flooder) answer(ctx context.Context) {
	buf := make([]byte, frameMax)
	for ctx.Err() == nil {
		n, _, err := unix.Recvfrom(f.rx, buf, 0)
		if err != nil {
			continue // the receive timeout, so that the context is looked at
		}
		h, s, ok := packet.ParseTCP(buf[:n])
		if !ok {
			continue
		}
		reply := packet.Header{
			SrcMAC: h.DstMAC, DstMAC: h.SrcMAC, Src: h.Dst, Dst: h.Src,
			SrcPort: h.DstPort, DstPort: h.SrcPort,
		}
		seg := packet.Segment{Flags: packet.ACK, Seq: s.Ack, Ack: s.Seq + 1}
		f.acks.push(packet.AppendTCP(f.acks.frame(), reply, seg, nil))
		f.acks.flush()
		f.completed.Add(1)
		if f.spec.Speak > 0 {
			f.keep(standing{reply, seg})
		}
	}
}

// standing is a connection that the other side takes for open.
type standing struct {
	to   packet.Header
	next packet.Segment
}

// mostStanding bounds how many connections are spoken on.
const mostStanding = 1 << 17

func (f *flooder) keep(c standing) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.standing) < mostStanding {
		f.standing = append(f.standing, c)
	}
}

// speak sends a byte on one connection after the other, always the same byte of each: the other side acknowledges it
// each time.
func (f *flooder) speak(ctx context.Context) {
	tick := time.NewTicker(slice)
	defer tick.Stop()
	each := max(1, f.spec.Speak*int(slice)/int(time.Second))
	for at := 0; ; {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		f.mu.Lock()
		list := f.standing
		f.mu.Unlock()
		for range min(each, len(list)) {
			c := list[at%len(list)]
			at++
			f.voice.push(packet.AppendTCP(f.voice.frame(), c.to, c.next, []byte("x")))
		}
		f.voice.flush()
	}
}
