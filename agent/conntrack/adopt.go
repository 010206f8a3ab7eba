package conntrack

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"
)

// Flow is a live TCP connection of this host.
type Flow struct {
	Local, Remote netip.AddrPort
	Outgoing      bool // made by this host, not by the other side

	// The window scales that each side announced, if both did (tcp_info(7)). Without them conntrack
	// can't tell what is acknowledged, and keeps the entry of a connection that falls idle no longer
	// than nf_conntrack_tcp_timeout_unacknowledged, five minutes by default.
	Scaled                  bool
	LocalScale, RemoteScale uint8
}

// adoptBatch is how many entries are made in one call. Making one costs the kernel several times what
// deleting one does, so batches are smaller.
const adoptBatch = 64

// ErrTableFull says that the table had no room for entries that were to be made: those who got none are picked up by
// their next packet, where the host's rules and tcp_loose allow that.
var ErrTableFull = errors.New("the table is full")

// Adopt gives connections that lived untracked the entries that conntrack would have made of them, so
// that they go on when they are tracked again: established, assured, and with the namespace's own
// timeout for such. Nobody knows their windows, so those are not checked (IP_CT_TCP_FLAG_BE_LIBERAL), in entries of
// before neither: their windows moved on unseen, and with an acknowledgement of what it has not seen conntrack calls
// every packet INVALID. It returns how many it made; a connection that has an entry already keeps that and isn't
// counted.
// Entries belong to the default zone.
//
// Adopt before tracking begins: afterwards packets of a connection without an entry are INVALID. An entry whose
// connection ends untracked meanwhile stays for the whole timeout, so don't wait in between.
//
// r bounds the entries per second, nil means no bound; Adopt waits for it, in batches up to its burst.
// When ctx ends or the kernel refuses entries, for want of room (ENOMEM), it returns how many were
// made beside the error.
func (t *Table) Adopt(ctx context.Context, flows []Flow, r *rate.Limiter) (created int, err error) {
	created, err = t.give(ctx, len(flows), r, func(queue *changes, b []byte, life lifetimes) {
		queue.flags = unix.NLM_F_CREATE | unix.NLM_F_EXCL
		for _, f := range flows {
			b = f.appendEntry(b[:0], life.tcp)
			queue.add(familyOf(f.Remote.Addr()), b)
		}
	})
	_, loose := t.give(ctx, len(flows), r, func(queue *changes, b []byte, _ lifetimes) {
		for _, f := range flows {
			from, to := f.ends()
			b = appendWindows(appendTuple(b[:0], attrTupleOrig, protoTCP, from, to), tcpBeLiberal)
			queue.add(familyOf(f.Remote.Addr()), b)
		}
	})
	if err = errors.Join(err, loose); err != nil {
		err = fmt.Errorf("adopt connections: %w", err)
	}
	return created, err
}

// ends returns who opened the connection, and to whom.
func (f Flow) ends() (from, to netip.AddrPort) {
	if f.Outgoing {
		return f.Local, f.Remote
	}
	return f.Remote, f.Local
}

// appendWindows appends whether an entry checks windows: tcpBeLiberal for no, 0 for yes.
func appendWindows(b []byte, flag byte) []byte {
	b, info := openNest(b, attrProtoInfo)
	b, tcp := openNest(b, protoInfoTCP)
	b = appendAttr(b, protoInfoFlagsOrig, flag, tcpBeLiberal) // struct nf_ct_tcp_flags: flags and mask
	b = appendAttr(b, protoInfoFlagsRepl, flag, tcpBeLiberal)
	closeNest(b, tcp)
	closeNest(b, info)
	return b
}

// lifetimes are the namespace's own timeouts of open TCP connections and of UDP streams, in seconds.
type lifetimes struct{ tcp, udp uint32 }

// give has fill queue what gives flows their entries, which it may put together in b, and returns how many changes the
// kernel made. An entry that is there already, or one to be changed that is not, is no failure.
func (t *Table) give(
	ctx context.Context, flows int, r *rate.Limiter, fill func(queue *changes, b []byte, life lifetimes),
) (made int, err error) {
	if flows == 0 {
		return 0, nil
	}
	tcp, err := readNumber(t.established)
	if err != nil {
		return 0, err
	}
	udp, err := readNumber(t.stream)
	if err != nil {
		return 0, err
	}
	refused, reason := 0, unix.Errno(0)
	made, err = t.change(ctx, msgNew, r, func(queue *changes) error {
		queue.limit = min(queue.limit, adoptBatch)
		queue.failed = func(errno unix.Errno) {
			if errno != unix.EEXIST && errno != unix.ENOENT {
				refused, reason = refused+1, errno
			}
		}
		fill(queue, make([]byte, 0, 512), lifetimes{uint32(tcp), uint32(udp)})
		return nil
	})
	if err == nil && refused > 0 {
		err = fmt.Errorf("%d of %d connections refused: %w", refused, flows, reason)
		if reason == unix.ENOMEM {
			err = fmt.Errorf("%w: %w", ErrTableFull, err)
		}
	}
	return made, err
}

// appendEntry appends the attributes of f's entry; see ctnetlink_create_conntrack in
// net/netfilter/nf_conntrack_netlink.c.
func (f Flow) appendEntry(b []byte, timeout uint32) []byte {
	from, to := f.ends()
	fromScale, toScale := f.RemoteScale, f.LocalScale
	if f.Outgoing {
		fromScale, toScale = toScale, fromScale
	}
	b = appendTuple(b, attrTupleOrig, protoTCP, from, to)
	b = appendTuple(b, attrTupleReply, protoTCP, to, from)
	return appendEstablished(b, timeout, f.Scaled, fromScale, toScale)
}

// appendAnswered appends what makes an entry one of a flow that both sides speak in.
func appendAnswered(b []byte, timeout uint32) []byte {
	b = appendAttr(b, attrStatus, 0, 0, 0, statusConfirmed|statusSeenReply|statusAssured)
	return appendAttr(b, attrTimeout, binary.BigEndian.AppendUint32(nil, timeout)...)
}

// appendEstablished appends what makes an entry that of an open connection, whose windows are not checked.
func appendEstablished(b []byte, timeout uint32, scaled bool, fromScale, toScale byte) []byte {
	b = appendAnswered(b, timeout)
	b, info := openNest(b, attrProtoInfo)
	b, tcp := openNest(b, protoInfoTCP)
	b = appendAttr(b, protoInfoState, tcpEstablished)
	flags := byte(tcpBeLiberal)
	if scaled {
		flags |= tcpWindowScale
		b = appendAttr(b, protoInfoScaleOrig, fromScale)
		b = appendAttr(b, protoInfoScaleRepl, toScale)
	}
	b = appendAttr(b, protoInfoFlagsOrig, flags, flags) // struct nf_ct_tcp_flags: flags and mask
	b = appendAttr(b, protoInfoFlagsRepl, flags, flags)
	closeNest(b, tcp)
	closeNest(b, info)
	return b
}

// appendTuple appends one direction of an entry.
func appendTuple(b []byte, kind uint16, protocol byte, src, dst netip.AddrPort) []byte {
	b, tuple := openNest(b, kind)
	b, ip := openNest(b, tupleIP)
	from, to := src.Addr().Unmap(), dst.Addr().Unmap()
	if from.Is4() {
		b = appendAttr(b, ipV4Src, from.AsSlice()...)
		b = appendAttr(b, ipV4Dst, to.AsSlice()...)
	} else {
		b = appendAttr(b, ipV6Src, from.AsSlice()...)
		b = appendAttr(b, ipV6Dst, to.AsSlice()...)
	}
	closeNest(b, ip)
	b, proto := openNest(b, tupleProto)
	b = appendAttr(b, protoNum, protocol)
	b = appendAttr(b, protoSrcPort, byte(src.Port()>>8), byte(src.Port()))
	b = appendAttr(b, protoDstPort, byte(dst.Port()>>8), byte(dst.Port()))
	closeNest(b, proto)
	closeNest(b, tuple)
	return b
}
