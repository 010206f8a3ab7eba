package conntrack

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// part says which part of the table a walk asks for. The zero part is all of it.
type part struct {
	family uint8      // AF_INET or AF_INET6; 0 means both
	source netip.Addr // one original source; kernels that cannot filter send everything
}

// ending is how a walk went.
type ending struct {
	whole bool // the dump ran to its end
	torn  bool // entries may be missing or double
}

// walk dumps the table and calls visit with each entry until visit returns false, the deadline
// (unless zero) has passed, ctx is done or the table ends. The entry is only valid during the call.
//
// Each walk has a socket of its own: closing it is the only way to end a dump early, and costs
// nothing, because the kernel makes the next part of a dump only when the one before was read.
func (t *Table) walk(ctx context.Context, p part, deadline time.Time, visit func(*entry) bool) (ending, error) {
	var end ending
	s, err := t.dial()
	if err != nil {
		return end, err
	}
	if err := s.send(dumpRequest(p)); err != nil {
		s.close()
		return end, err
	}
	r := t.receiveAll(s)
	defer r.stop()
	for {
		if err := ctx.Err(); err != nil {
			return end, fmt.Errorf("dump conntrack table: %w", err)
		}
		if !deadline.IsZero() && !time.Now().Before(deadline) {
			return end, nil
		}
		d := <-r.full
		if d.err == unix.ENOBUFS {
			end.torn = true
			continue
		}
		if d.err != nil {
			return end, fmt.Errorf("dump conntrack table: %w", d.err)
		}
		more, err := t.visitAll(d.messages, &end, visit)
		if err != nil || !more {
			return end, err
		}
		r.free <- d.messages[:cap(d.messages)]
	}
}

// receiver reads a dump ahead of the walk, on a thread of its own: making the next part of the dump
// is the kernel's work within recv(2), and the walk looks at the part before meanwhile.
type receiver struct {
	free    chan []byte
	full    chan datagram
	stopped chan struct{} // by the walk
	ended   chan struct{} // by the receiver
}

// datagram is what one recv(2) brought.
type datagram struct {
	messages []byte
	err      error
}

// readAhead is how many datagrams may be on their way. Two would do if threads woke at once.
const readAhead = 3

// receiveAll starts to receive, and closes the socket in the end.
func (t *Table) receiveAll(s *socket) *receiver {
	r := &receiver{
		free: make(chan []byte, readAhead), full: make(chan datagram, readAhead),
		stopped: make(chan struct{}), ended: make(chan struct{}),
	}
	for i := range t.bufs {
		if t.bufs[i] == nil {
			t.bufs[i] = make([]byte, receiveBuffer)
		}
		r.free <- t.bufs[i]
	}
	go func() {
		defer close(r.ended)
		defer s.close()
		buf := <-r.free
		for {
			b, err := s.receive(buf, 0)
			r.full <- datagram{b, err}
			if err == unix.ENOBUFS {
				continue // into the same buffer
			}
			if err != nil || endsDump(b) {
				return
			}
			select {
			case buf = <-r.free:
			case <-r.stopped:
				return
			}
		}
	}()
	return r
}

// stop ends the receiver and waits until it lets go of its buffers. It may be in recv(2), but not for
// long: as long as the dump has not ended, its next part is waiting there.
func (r *receiver) stop() {
	close(r.stopped)
	for {
		select {
		case <-r.full: // make room for what it still brings
		case <-r.ended:
			return
		}
	}
}

// endsDump says whether a datagram holds the end of a dump, or cannot be followed to its own end:
// after either there is nothing more to receive.
func endsDump(b []byte) bool {
	for len(b) > 0 {
		m, rest, err := nextMessage(b)
		if err != nil || m.kind == unix.NLMSG_DONE || m.kind == unix.NLMSG_ERROR {
			return true
		}
		b = rest
	}
	return false
}

// visitAll hands the entries of one datagram to visit and says whether there is more to come.
func (t *Table) visitAll(b []byte, end *ending, visit func(*entry) bool) (more bool, err error) {
	for len(b) > 0 {
		var m message
		if m, b, err = nextMessage(b); err != nil {
			return false, fmt.Errorf("dump conntrack table: %w", err)
		}
		if m.seq != dumpSeq {
			continue
		}
		if m.flags&unix.NLM_F_DUMP_INTR != 0 {
			end.torn = true
		}
		switch m.kind {
		case msgNew:
			if t.entry.parse(m.payload) && !visit(&t.entry) {
				return false, nil
			}
		case unix.NLMSG_ERROR, unix.NLMSG_DONE:
			if errno := m.errorCode(); errno != 0 {
				return false, fmt.Errorf("dump conntrack table: %w", errno)
			}
			end.whole = true
			return false, nil
		}
	}
	return true, nil
}

// dumpSeq marks the answers of a dump; its socket sees no other request.
const dumpSeq = 1

// dumpRequest asks for a part of the table. The filter is CTA_FILTER with the flag of the source
// address, and the address in a tuple; see ctnetlink_alloc_filter in
// net/netfilter/nf_conntrack_netlink.c.
func dumpRequest(p part) []byte {
	family := p.family
	if p.source.IsValid() {
		family = familyOf(p.source)
	}
	b := appendMessage(nil, msgGet, unix.NLM_F_DUMP, dumpSeq, family, 0)
	if p.source.IsValid() {
		b = appendSourceFilter(b, p.source)
	}
	closeMessage(b, 0)
	return b
}

func familyOf(ip netip.Addr) uint8 {
	if ip.Unmap().Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// appendSourceFilter appends the attributes that restrict a dump or a flush to one original source.
func appendSourceFilter(b []byte, source netip.Addr) []byte {
	b, filter := openNest(b, attrFilter)
	b = appendAttr(b, filterOrigFlags, filterSource, 0, 0, 0)
	b = appendAttr(b, filterReplyFlags, 0, 0, 0, 0)
	closeNest(b, filter)
	b, orig := openNest(b, attrTupleOrig)
	b, ip := openNest(b, tupleIP)
	if source = source.Unmap(); source.Is4() {
		a := source.As4()
		b = appendAttr(b, ipV4Src, a[:]...)
	} else {
		a := source.As16()
		b = appendAttr(b, ipV6Src, a[:]...)
	}
	closeNest(b, ip)
	closeNest(b, orig)
	return b
}

// isTimeout says whether a socket stayed silent for longer than it may.
func isTimeout(err error) bool { return errors.Is(err, unix.EAGAIN) }
