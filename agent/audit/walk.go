package audit

import (
	"cmp"
	"context"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"ctguard/agent/conntrack"
	"ctguard/policy"
)

// walkFor bounds a pass: a table of a million entries takes about this long, and a host in trouble has
// better things to do.
const walkFor = 10 * time.Second

// place is what has to be known of a host to tell what its entries are.
type place struct {
	own       []netip.Addr
	networks  []netip.Prefix    // those that it forwards for
	forwarded []policy.Selector // services of inside hosts
	kept      int               // seconds that established connections are kept for
}

// walk counts what the entries of a table say. The filter has what silence is told from.
func walk(ctx context.Context, table *conntrack.Table, f conntrack.EntryFilter, p place) (Table, error) {
	d := newDigest(p)
	end := time.Now().Add(walkFor)
	d.table.Whole = true
	err := table.Entries(ctx, f, func(e conntrack.Entry) bool {
		d.add(e)
		if d.table.Listed%4096 == 0 && time.Now().After(end) {
			d.table.Whole = false
		}
		return d.table.Whole
	})
	return d.result(), err
}

// digest counts entries on bounded memory.
type digest struct {
	place
	table   Table
	own     map[netip.Addr]bool
	served  map[netip.Addr][]policy.Selector // forwarded services by inside host
	idle    leaders[netip.Addr]
	inside  leaders[netip.Addr]
	ports   leaders[PortUse]
	longest time.Duration // that an established connection is kept for
}

func newDigest(p place) *digest {
	d := &digest{place: p, served: make(map[netip.Addr][]policy.Selector), own: make(map[netip.Addr]bool),
		idle: make(leaders[netip.Addr]), inside: make(leaders[netip.Addr]),
		ports: make(leaders[PortUse]), longest: time.Duration(p.kept) * time.Second}
	for _, a := range p.own {
		d.own[a] = true
	}
	d.table.Helps, d.table.Local, d.table.Overlays = make(map[Port]int), make(map[Port]int), make(map[string]int)
	d.table.Forwarded = make(map[policy.Selector]int)
	for _, s := range p.forwarded {
		d.served[s.Inside.Addr()] = append(d.served[s.Inside.Addr()], s)
	}
	return d
}

// add counts one entry.
func (d *digest) add(e conntrack.Entry) {
	t := &d.table
	t.Listed++
	src, dst := e.Source.Addr(), e.Destination.Addr()
	port := Port{e.Protocol, e.Destination.Port()}
	switch {
	case dst.IsMulticast() || dst == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		t.Group++
	case src.IsLoopback() && dst.IsLoopback():
		t.Loopback++
	case d.own[src] && d.own[dst]:
		t.Own++
	case d.own[dst] && !e.Translated:
		t.Local[port]++
	}
	if name := overlays[port.Port]; name != "" && e.Protocol == unix.IPPROTO_UDP {
		t.Overlays[name]++
	}
	if e.Protocol == unix.IPPROTO_GRE || e.Protocol == unix.IPPROTO_ESP {
		t.Overlays[map[uint8]string{unix.IPPROTO_GRE: "gre", unix.IPPROTO_ESP: "ipsec"}[e.Protocol]]++
	}
	switch {
	case e.State == "SYN_SENT" || e.State == "SYN_RECV" || e.State == "SYN_SENT2":
		t.HalfOpen++
	case e.State != "ESTABLISHED" || !e.Assured || e.Protocol != unix.IPPROTO_TCP:
	case e.Silent >= idleFor:
		t.Idle++
		d.idle.add(src)
	case e.Left > d.longest && !e.Offloaded:
		t.Older++
	}
	if !e.Replied {
		t.Unreplied++
	}
	if e.Helped {
		t.Helped++
		t.Helps[port]++
	}
	if !e.Translated && d.isInside(src) && d.isInside(dst) {
		t.Segments++
	}
	for _, s := range d.served[e.ReplySource.Addr()] {
		at, last := e.ReplySource.Port(), s.Inside.Port()+max(s.Port, s.Last)-s.Port
		if (s.Protocol == policy.TCP) == (e.Protocol == unix.IPPROTO_TCP) && at >= s.Inside.Port() && at <= last &&
			s.Local.Contains(dst) {
			t.Forwarded[s]++
			break
		}
	}
	d.translated(e)
}

// isInside says whether this host forwards for an address; its own are none of those.
func (d *digest) isInside(a netip.Addr) bool {
	return !d.own[a] && slices.ContainsFunc(d.networks, func(p netip.Prefix) bool { return p.Contains(a) })
}

// translated counts an entry with NAT.
func (d *digest) translated(e conntrack.Entry) {
	if !e.Translated {
		return
	}
	d.table.Translated++
	public := e.ReplyDestination.Addr() // whom the answers go to is not who asked: the source is translated
	if public == e.Source.Addr() || !public.IsValid() {
		return
	}
	d.inside.add(e.Source.Addr())
	if e.ReplyDestination.Port() != 0 {
		d.ports.add(PortUse{Protocol: e.Protocol, Public: public, Destination: e.ReplySource})
	}
}

// result returns what was counted.
func (d *digest) result() Table {
	t := d.table
	t.IdleTop, t.Inside = holdersOf(d.idle), holdersOf(d.inside)
	for _, use := range d.ports.largest(10) {
		one := use.key
		one.Entries = use.n
		t.Ports = append(t.Ports, one)
	}
	return t
}

func holdersOf(l leaders[netip.Addr]) (list []Holder) {
	for _, one := range l.largest(10) {
		list = append(list, Holder{one.key, one.n})
	}
	return list
}

// leaders finds the most frequent keys of a stream with a bounded number of counters (Misra and Gries, 1982): a
// count is never too high, and too low by one in mostLeaders of the stream at most.
type leaders[K comparable] map[K]int

const mostLeaders = 1 << 16

func (l leaders[K]) add(key K) {
	if _, known := l[key]; known || len(l) < mostLeaders {
		l[key]++
		return
	}
	for k := range l {
		if l[k]--; l[k] == 0 {
			delete(l, k)
		}
	}
}

// leader is a key and how often it came.
type leader[K comparable] struct {
	key K
	n   int
}

// largest returns the n most frequent keys, most frequent first.
func (l leaders[K]) largest(n int) []leader[K] {
	all := make([]leader[K], 0, len(l))
	for key, count := range l {
		all = append(all, leader[K]{key, count})
	}
	slices.SortFunc(all, func(a, b leader[K]) int { return cmp.Compare(b.n, a.n) })
	return all[:min(n, len(all))]
}
