package conntrack

import (
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/time/rate"
)

// Entry is one entry, as people know it from conntrack(8).
type Entry struct {
	Protocol           uint8 // IP protocol number
	Source             netip.AddrPort
	Destination        netip.AddrPort // port 0 for protocols without ports
	ReplySource        netip.AddrPort // who answers: differs from Destination where that is translated
	ReplyDestination   netip.AddrPort
	State              string // of TCP, SCTP and DCCP, in capital letters; empty for others
	Replied, Assured   bool
	Translated, Helped bool
	Offloaded          bool // its packets pass conntrack by; Left and Silent say nothing
	Zone               uint16
	Mark               uint32
	Left               time.Duration // until it expires
	Silent             time.Duration // since its last packet, -1 where that is not known
	ID                 uint32        // CTA_ID
}

// EntryFilter says which entries are wanted. The zero value wants all; every field that is set narrows.
type EntryFilter struct {
	Either      netip.Prefix   // source or destination, of either direction
	Source      netip.Prefix   // of the original direction
	Sources     []netip.Prefix // likewise, one of these; none means any
	Destination netip.Prefix
	Protocol    uint8
	Port        uint16 // destination port of the original direction
	State       string // as in [Entry.State]
	Family      uint8  // unix.AF_INET or unix.AF_INET6
	Zone        *uint16
	Mark        *uint32
	Replied     *bool
	Assured     *bool
	Translated  *bool
	Silent      time.Duration  // at least so long
	Timeouts    map[string]int // seconds by sysctl name, as they are in force: needed for Silent
	Retimed     map[string]int // likewise, what a [Retiming] gave to entries that may be there still
}

// Entries calls visit with each entry that the filter wants, until visit returns false, the table ends or
// ctx does. The table is streamed: nothing is kept.
func (t *Table) Entries(ctx context.Context, f EntryFilter, visit func(Entry) bool) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	m := newMatcher(f)
	_, err := t.walk(ctx, f.part(), 0, func(e *entry) bool {
		if !m.wants(e) {
			return true
		}
		return visit(m.describe(e))
	})
	return err
}

// Remove deletes the entries that the filter wants and returns how many, or, with dryRun, how many it would
// delete. Entries with an original source in spare stay, and so do those whose answers go to one.
func (t *Table) Remove(
	ctx context.Context, f EntryFilter, spare []netip.Prefix, dryRun bool, r *rate.Limiter,
) (n int, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	m, spared, counted := newMatcher(f), newPrefixSet(spare), 0
	n, err = t.change(ctx, msgDelete, r, func(queue *changes) error {
		queue.atOnce = true // somebody has asked for just that
		_, err := t.walk(ctx, f.part(), 0, func(e *entry) bool {
			switch {
			case !m.wants(e) || spared.contains(e.orig.src):
				return true
			case dryRun:
				counted++
				return true
			}
			return queue.delete(e)
		})
		return err
	})
	if err != nil {
		err = fmt.Errorf("remove entries: %w", err)
	}
	return n + counted, err
}

// part is what the kernel can leave out by itself. Nobody finds out first whether it filters by an IPv4 source: each
// entry that comes is asked about, a kernel that does not filter sends all of them, and to find out takes a walk over
// a full table as well. What an IPv6 source would bring is not to be had so: see [Families].
func (f EntryFilter) part() part {
	p := part{family: f.Family}
	if ip := f.Source.Addr(); p.family == 0 && ip.IsValid() {
		p.family = familyOf(ip)
	}
	if f.Source.IsSingleIP() && f.Source.Addr().Is4() {
		p.source = f.Source.Addr()
	}
	bit := func(want *bool, bit byte) {
		switch {
		case want == nil:
		case *want:
			p.has |= bit
		default:
			p.lacks |= bit
		}
	}
	bit(f.Replied, statusSeenReply)
	bit(f.Assured, statusAssured)
	return p
}

// matcher decides on entries for a filter.
type matcher struct {
	EntryFilter
	silence silence
	sources prefixSet
}

func newMatcher(f EntryFilter) *matcher {
	return &matcher{EntryFilter: f, silence: newSilence(f.Timeouts, f.Retimed), sources: newPrefixSet(f.Sources)}
}

// wants says whether the filter wants an entry: the cheap questions first.
func (m *matcher) wants(e *entry) bool {
	switch {
	case m.Protocol != 0 && e.orig.proto != m.Protocol,
		m.Port != 0 && e.orig.dstPort != m.Port,
		m.Family != 0 && e.family != m.Family,
		m.Replied != nil && *m.Replied != (e.status&statusSeenReply != 0),
		m.Assured != nil && *m.Assured != (e.status&statusAssured != 0),
		m.Zone != nil && *m.Zone != e.zone(),
		m.Mark != nil && *m.Mark != e.mark,
		m.Translated != nil && *m.Translated != e.translated(),
		m.State != "" && m.State != e.stateName(),
		m.Silent > 0 && !m.silence.atLeast(e, uint32(m.Silent/time.Second)):
		return false
	}
	return (len(m.Sources) == 0 || m.sources.contains(e.orig.src)) && holds(m.Source, e.orig.src) &&
		holds(m.Destination, e.orig.dst) && m.either(e)
}

func holds(p netip.Prefix, a address) bool { return !p.IsValid() || p.Contains(a.netip()) }

// either says whether one of the four addresses of an entry is in the prefix that is asked for.
func (m *matcher) either(e *entry) bool {
	if !m.Either.IsValid() || holds(m.Either, e.orig.src) || holds(m.Either, e.orig.dst) {
		return true
	}
	var reply tuple
	return reply.parse(e.bytes(e.replySpan)) && (holds(m.Either, reply.src) || holds(m.Either, reply.dst))
}

// describe puts an entry into words.
func (m *matcher) describe(e *entry) Entry {
	f := Entry{
		Protocol:    e.orig.proto,
		Source:      netip.AddrPortFrom(e.orig.src.netip(), e.orig.srcPort),
		Destination: netip.AddrPortFrom(e.orig.dst.netip(), e.orig.dstPort),
		State:       e.stateName(), Replied: e.status&statusSeenReply != 0, Assured: e.status&statusAssured != 0,
		Translated: e.translated(), Helped: e.helped, Offloaded: e.status&(statusOffload|statusHWOffload) != 0,
		Zone: e.zone(), Mark: e.mark, ID: e.id(), Silent: -1,
	}
	var reply tuple
	if reply.parse(e.bytes(e.replySpan)) {
		f.ReplySource = netip.AddrPortFrom(reply.src.netip(), reply.srcPort)
		f.ReplyDestination = netip.AddrPortFrom(reply.dst.netip(), reply.dstPort)
	}
	if e.timeout != noTimeout {
		f.Left = time.Duration(e.timeout) * time.Second
	}
	if silent, known := m.silence.of(e); known && !f.Offloaded {
		f.Silent = time.Duration(silent) * time.Second
	}
	return f
}

// zone returns the zone in which the entry was opened, 0 for the default one.
func (e *entry) zone() uint16 {
	if b := e.bytes(e.zoneSpan); len(b) >= attrLen+2 {
		return binary.BigEndian.Uint16(b[attrLen:])
	}
	named := e.bytes(e.tupleSpan)
	switch len(named) {
	case 0, attrLen + 48, attrLen + 72: // addresses and ports, and nothing else
		return 0
	}
	for rest := named[attrLen:]; ; {
		kind, value, next, ok := attr(rest)
		if !ok || kind == tupleZone {
			return beUint16(value)
		}
		rest = next
	}
}

// Names of states as conntrack(8) prints them: enum tcp_conntrack, sctp_conntrack and ct_dccp_states.
var (
	tcpStates = [...]string{
		"NONE", "SYN_SENT", "SYN_RECV", "ESTABLISHED", "FIN_WAIT", "CLOSE_WAIT", "LAST_ACK", "TIME_WAIT", "CLOSE",
		"SYN_SENT2",
	}
	sctpState = [...]string{
		"NONE", "CLOSED", "COOKIE_WAIT", "COOKIE_ECHOED", "ESTABLISHED", "SHUTDOWN_SENT", "SHUTDOWN_RECD",
		"SHUTDOWN_ACK_SENT", "HEARTBEAT_SENT", "HEARTBEAT_ACKED",
	}
	dccpState = [...]string{
		"NONE", "REQUEST", "RESPOND", "PARTOPEN", "OPEN", "CLOSEREQ", "CLOSING", "TIMEWAIT", "IGNORE", "INVALID",
	}
)

// stateName returns the state of a protocol that has one.
func (e *entry) stateName() string {
	names := map[uint8][]string{
		protoInfoTCP: tcpStates[:], protoInfoSCTP: sctpState[:], protoInfoDCCP: dccpState[:],
	}[e.protoInfo]
	if int(e.state) < len(names) {
		return names[e.state]
	}
	return ""
}
