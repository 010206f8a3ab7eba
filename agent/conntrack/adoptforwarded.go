package conntrack

import (
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"
)

// ForwardedFlow is a live TCP connection, or a UDP flow, of a client to a service of an inside host. Clients send to
// Outside, which is Inside where the service is merely routed.
type ForwardedFlow struct {
	Client, Outside, Inside netip.AddrPort
	UDP                     bool
}

// widestScale is the largest window scale there is (RFC 7323, section 2.3). Nobody knows which one the two ends agreed
// on, and with this one nothing that they say is out of bounds.
const widestScale = 14

// AdoptForwarded is [Table.Adopt] for connections to inside hosts: it gives them the entries that conntrack would have
// made of them, translated as the service is. A connection that has an entry from before it lived untracked keeps
// that, but its windows, which have moved on unseen, are not checked any more: its next packet would be INVALID, not
// be translated, and be answered by this host with a reset. It returns how many have an entry now.
func (t *Table) AdoptForwarded(ctx context.Context, flows []ForwardedFlow, r *rate.Limiter) (adopted int, err error) {
	adopted, err = t.give(ctx, len(flows), r, func(queue *changes, b []byte, life lifetimes) {
		for _, f := range flows {
			if !f.UDP {
				b = f.appendUpdate(b[:0], life.tcp)
				queue.flags = 0
				queue.add(familyOf(f.Client.Addr()), b)
			}
			b = f.appendEntry(b[:0], life)
			queue.flags = unix.NLM_F_CREATE | unix.NLM_F_EXCL
			queue.add(familyOf(f.Client.Addr()), b)
		}
	})
	if err != nil {
		err = fmt.Errorf("adopt forwarded connections: %w", err)
	}
	return adopted, err
}

// appendEntry appends the attributes of f's entry.
func (f ForwardedFlow) appendEntry(b []byte, life lifetimes) []byte {
	protocol := byte(protoTCP)
	if f.UDP {
		protocol = protoUDP
	}
	b = appendTuple(b, attrTupleOrig, protocol, f.Client, f.Outside)
	b = appendTuple(b, attrTupleReply, protocol, f.Outside, f.Client) // the translation below makes it the inside host's
	if f.UDP {
		b = appendAnswered(b, life.udp)
	} else {
		b = appendEstablished(b, life.tcp, true, widestScale, widestScale)
	}
	if f.Inside == f.Outside {
		return b
	}
	b, nat := openNest(b, attrNATDst)
	addr := f.Inside.Addr().AsSlice()
	if f.Inside.Addr().Is4() {
		b = appendAttr(b, natV4Least, addr...)
		b = appendAttr(b, natV4Most, addr...)
	} else {
		b = appendAttr(b, natV6Least, addr...)
		b = appendAttr(b, natV6Most, addr...)
	}
	b, proto := openNest(b, natProto)
	port := binary.BigEndian.AppendUint16(nil, f.Inside.Port())
	b = appendAttr(b, natPortLeast, port...)
	b = appendAttr(b, natPortMost, port...)
	closeNest(b, proto)
	closeNest(b, nat)
	return b
}

// appendUpdate appends the attributes by which an entry that f has already is brought up to date.
func (f ForwardedFlow) appendUpdate(b []byte, timeout uint32) []byte {
	b = appendTuple(b, attrTupleOrig, protoTCP, f.Client, f.Outside)
	return appendEstablished(b, timeout, false, 0, 0)
}
