package flood

import (
	"context"

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
	}
}
