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

// udpTimeout is how many seconds an answered entry of UDP lasts by default: nf_conntrack_udp_timeout_stream.
const udpTimeout = 120

// widestScale is the largest window scale there is (RFC 7323, section 2.3). Nobody knows which one the two ends agreed
// on, and with this one nothing that they say is out of bounds.
const widestScale = 14

// AdoptForwarded is [Table.Adopt] for connections to inside hosts: it gives them the entries that conntrack would have
// made of them, translated as the service is. A connection that has an entry from before it lived untracked keeps
// that, but its windows, which have moved on unseen, are not checked any more: its next packet would be INVALID, not
// be translated, and be answered by this host with a reset. It returns how many have an entry now.
func (t *Table) AdoptForwarded(ctx context.Context, flows []ForwardedFlow, r *rate.Limiter) (adopted int, err error) {
	if len(flows) == 0 {
		return 0, nil
	}
	timeout, err := readNumber(t.established)
	if err != nil {
		return 0, fmt.Errorf("adopt forwarded connections: %w", err)
	}
	refused, reason := 0, unix.Errno(0)
	adopted, err = t.change(ctx, msgNew, r, func(queue *changes) error {
		queue.limit = min(queue.limit, adoptBatch)
		queue.failed = func(errno unix.Errno) {
			if errno != unix.EEXIST && errno != unix.ENOENT {
				refused, reason = refused+1, errno
			}
		}
		attributes := make([]byte, 0, 512)
		for _, f := range flows {
			if !f.UDP {
				attributes = f.appendUpdate(attributes[:0], uint32(timeout))
				queue.flags = 0
				queue.add(familyOf(f.Client.Addr()), attributes)
			}
			attributes = f.appendEntry(attributes[:0], uint32(timeout))
			queue.flags = unix.NLM_F_CREATE | unix.NLM_F_EXCL
			queue.add(familyOf(f.Client.Addr()), attributes)
		}
		return nil
	})
	if err == nil && refused > 0 {
		err = fmt.Errorf("%d of %d connections refused: %w", refused, len(flows), reason)
		if reason == unix.ENOMEM {
			err = fmt.Errorf("%w: %w", ErrTableFull, err)
		}
	}
	if err != nil {
		err = fmt.Errorf("adopt forwarded connections: %w", err)
	}
	return adopted, err
}

// appendEntry appends the attributes of f's entry.
func (f ForwardedFlow) appendEntry(b []byte, timeout uint32) []byte {
	protocol := byte(protoTCP)
	if f.UDP {
		protocol = protoUDP
	}
	b = appendTuple(b, attrTupleOrig, protocol, f.Client, f.Outside)
	b = appendTuple(b, attrTupleReply, protocol, f.Outside, f.Client) // the translation below makes it the inside host's
	if f.UDP {
		b = appendAnswered(b, udpTimeout)
	} else {
		b = appendEstablished(b, timeout, tcpBeLiberal|tcpWindowScale)
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
	return appendEstablished(b, timeout, tcpBeLiberal)
}

// appendAnswered appends what makes an entry one of a flow that both sides speak in.
func appendAnswered(b []byte, timeout uint32) []byte {
	b = appendAttr(b, attrStatus, 0, 0, 0, statusConfirmed|statusSeenReply|statusAssured)
	return appendAttr(b, attrTimeout, binary.BigEndian.AppendUint32(nil, timeout)...)
}

// appendEstablished appends what makes an entry that of an open connection.
func appendEstablished(b []byte, timeout uint32, flags byte) []byte {
	b = appendAnswered(b, timeout)
	b, info := openNest(b, attrProtoInfo)
	b, tcp := openNest(b, protoInfoTCP)
	b = appendAttr(b, protoInfoState, tcpEstablished)
	if flags&tcpWindowScale != 0 {
		b = appendAttr(b, protoInfoScaleOrig, widestScale)
		b = appendAttr(b, protoInfoScaleRepl, widestScale)
	}
	b = appendAttr(b, protoInfoFlagsOrig, flags, flags)
	b = appendAttr(b, protoInfoFlagsRepl, flags, flags)
	closeNest(b, tcp)
	closeNest(b, info)
	return b
}
