package conntrack

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// part says which part of the table a walk asks for. The zero part is all of it.
type part struct {
	family uint8      // AF_INET or AF_INET6; 0 means both
	source netip.Addr // one original source; kernels that cannot filter send everything
	lacks  byte       // no entry with one of these bits of its status, the lowest eight; older kernels send them too
	has    byte       // only entries with all of these bits, likewise
}

// ending is how a walk went.
type ending struct {
	whole bool // the dump ran to its end
	torn  bool // entries may be missing or double
}

// walk dumps the table and calls visit with each entry until visit returns false, the budget of
// processor time (unless zero) is used up, ctx is done or the table ends. The entry is only valid during the call.
// A budget of time on the clock would make a sample of every scan where others need the processors.
//
// Each walk has a socket of its own: closing it is the only way to end a dump early, and costs
// nothing, because the kernel makes the next part of a dump only when the one before was read. One
// thread receives and looks: reading ahead on a second one costs a sixth more CPU, and time as well
// where the cores are busy, which under attack they are.
func (t *Table) walk(ctx context.Context, p part, budget time.Duration, visit func(*entry) bool) (ending, error) {
	var end ending
	s, err := t.dial()
	if err != nil {
		return end, err
	}
	defer s.close()
	if err := s.send(dumpRequest(p)); err != nil {
		return end, err
	}
	spent := func() bool { return false }
	if budget > 0 {
		runtime.LockOSThread() // whose time is measured
		defer runtime.UnlockOSThread()
		until := threadTime() + budget
		spent = func() bool { return threadTime() >= until }
	}
	for {
		if err := ctx.Err(); err != nil {
			return end, fmt.Errorf("dump conntrack table: %w", err)
		}
		if spent() {
			return end, nil
		}
		datagram, err := s.receive(t.buf, 0)
		if errors.Is(err, unix.ENOBUFS) {
			end.torn = true
			continue
		}
		if err != nil {
			return end, fmt.Errorf("dump conntrack table: %w", err)
		}
		more, err := t.visitAll(datagram, &end, visit)
		if err != nil || !more {
			return end, err
		}
	}
}

// threadTime is the processor time that the calling thread has used, in the kernel too: see clock_gettime(2). It makes
// the dump while it waits for it.
func threadTime() time.Duration {
	var ts unix.Timespec
	if unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts) != nil {
		return 0 // there on every Linux
	}
	return time.Duration(ts.Nano())
}

// visitAll hands the entries of one datagram to visit and says whether there is more to come.
func (t *Table) visitAll(datagram []byte, end *ending, visit func(*entry) bool) (more bool, err error) {
	for len(datagram) > 0 {
		var m message
		if m, datagram, err = nextMessage(datagram); err != nil {
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
// address, and the address in a tuple, or a mask and the value of the status under it; see
// ctnetlink_alloc_filter in net/netfilter/nf_conntrack_netlink.c.
func dumpRequest(p part) []byte {
	family := p.family
	if p.source.IsValid() {
		family = familyOf(p.source)
	}
	b := appendMessage(nil, msgGet, unix.NLM_F_DUMP, dumpSeq, family)
	if p.source.IsValid() {
		b = appendSourceFilter(b, p.source)
	}
	if mask := p.lacks | p.has; mask != 0 {
		b = appendAttr(b, attrStatus, 0, 0, 0, p.has)
		b = appendAttr(b, attrStatusMask, 0, 0, 0, mask)
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
