package conntrack

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"

	"ctguard/agent/conntrack/conntrackfill"
	"ctguard/policy"
)

// litter is one flow of everything that a purge must tell apart, between two addresses. What stays
// whatever the class is at the end: assured, and translated both ways.
func litter(src, dst netip.Addr) []flow {
	icmp := uint8(protoICMP)
	if src.Is6() {
		icmp = protoICMPv6
	}
	flows := []flow{
		{Proto: unix.IPPROTO_UDP, DstPort: 53},
		{Proto: unix.IPPROTO_UDP, DstPort: 53, Status: conntrackfill.SeenReply},
		{Proto: unix.IPPROTO_UDP, DstPort: 53, Zone: 7},
		{Proto: unix.IPPROTO_UDP, DstPort: 54},
		{Proto: unix.IPPROTO_TCP, DstPort: 53, State: tcpSynSent},
		{Proto: unix.IPPROTO_SCTP, DstPort: 53, State: 4},
		{Proto: unix.IPPROTO_SCTP, DstPort: 54, State: 4},
		{Proto: icmp},
		{Proto: unix.IPPROTO_ESP},
		{Proto: unix.IPPROTO_UDP, DstPort: 53, Status: busy},
		{Proto: unix.IPPROTO_UDP, DstPort: 53, NewDst: dst.Next()},
		{Proto: unix.IPPROTO_UDP, DstPort: 53, NewSrc: src.Next()},
	}
	for i := range flows {
		flows[i].Src, flows[i].Dst, flows[i].SrcPort, flows[i].Timeout = src, dst, uint16(100+i), 60
	}
	return flows
}

// kept says which of the flows are in the table, by their place.
func kept(tb testing.TB, table *Table, flows []flow) (places []int) {
	tb.Helper()
	left := dump(tb, table)
	for i, f := range flows {
		if slices.ContainsFunc(left, func(e entry) bool {
			return e.orig.proto == f.Proto && e.orig.src == addressOf(f.Src) &&
				(e.orig.srcPort == f.SrcPort || e.orig.srcPort == 0)
		}) {
			places = append(places, i)
		}
	}
	return places
}

// A purge takes of each family exactly what the class names, and leaves what lasts and what is spared.
func TestPurge(t *testing.T) {
	four := litter(addr("192.0.2.1"), addr("198.51.100.1"))
	six := litter(addr("2001:db8::1"), addr("2001:db8:1::1"))
	for _, c := range []struct {
		class     policy.FlowClass
		spare     string
		four, six []int  // places in litter
		local     string // if nothing else is to be purged
	}{
		{policy.FlowClass{Protocol: protoUDP, Port: 53}, "", []int{0, 1, 2}, []int{0, 1, 2}, ""},
		{policy.FlowClass{Protocol: protoUDP, Port: 53}, "192.0.2.0/24", nil, []int{0, 1, 2}, ""},
		{policy.FlowClass{Protocol: protoUDP, Port: 53}, "", []int{0, 1, 2}, nil, "198.51.100.1/32"},
		{policy.FlowClass{Protocol: protoUDP, Port: 53}, "", nil, nil, "198.51.100.2/32"},
		{policy.FlowClass{Protocol: protoUDP, Port: 53}, "2001:db8::/64", []int{0, 1, 2}, nil, ""},
		{policy.FlowClass{Protocol: protoUDP, Port: 55}, "", nil, nil, ""},
		{policy.FlowClass{Protocol: protoUDP}, "", []int{0, 1, 2, 3}, []int{0, 1, 2, 3}, ""},
		{policy.FlowClass{Protocol: protoTCP, Port: 53}, "", []int{4}, []int{4}, ""},
		{policy.FlowClass{Protocol: protoSCTP, Port: 53}, "", []int{5}, []int{5}, ""},
		{policy.FlowClass{Protocol: protoSCTP}, "", []int{5, 6}, []int{5, 6}, ""},
		{policy.FlowClass{Protocol: protoICMP}, "", []int{7}, nil, ""},
		{policy.FlowClass{Protocol: protoICMPv6}, "", nil, []int{7}, ""},
		{policy.FlowClass{Protocol: protoICMP, Port: 53}, "", nil, nil, ""},
		{policy.FlowClass{Protocol: unix.IPPROTO_ESP}, "", []int{8}, []int{8}, ""},
	} {
		t.Run(c.class.String()+", spare "+c.spare, func(t *testing.T) {
			table := openTable(t)
			fill(t, four...)
			fill(t, six...)
			var spare []netip.Prefix
			if c.spare != "" {
				spare = []netip.Prefix{netip.MustParsePrefix(c.spare)}
			}
			var local []netip.Prefix
			if c.local != "" {
				local = []netip.Prefix{netip.MustParsePrefix(c.local)}
			}
			n, err := table.Purge(t.Context(), policy.Purge{Class: c.class, Local: c.local != ""}, local, spare, nil)
			if want := len(c.four) + len(c.six); err != nil || n != want {
				t.Errorf("deleted %d, %v; want %d", n, err, want)
			}
			if left := kept(t, table, four); !slices.Equal(left, without(len(four), c.four)) {
				t.Errorf("of IPv4: kept %v, want all but %v", left, c.four)
			}
			if left := kept(t, table, six); !slices.Equal(left, without(len(six), c.six)) {
				t.Errorf("of IPv6: kept %v, want all but %v", left, c.six)
			}
		})
	}
}

// without counts to n and leaves some out.
func without(n int, out []int) (rest []int) {
	for i := range n {
		if !slices.Contains(out, i) {
			rest = append(rest, i)
		}
	}
	return rest
}

// dns is the purge that most tests ask for.
var dns = policy.Purge{Class: policy.FlowClass{Protocol: protoUDP, Port: 53}}

// flood is n unreplied UDP flows to one port, from an address each, of both families in turn.
func flood(n int, port uint16) (flows []flow) {
	for i := range n {
		f := flow{Src: nth(addr("10.0.0.1"), i), Dst: addr("198.51.100.1"), Proto: unix.IPPROTO_UDP, SrcPort: 9,
			DstPort: port, Timeout: 600}
		if i%2 == 1 {
			f.Src, f.Dst = nth(addr("2001:db8::1"), i), addr("2001:db8:1::1")
		}
		flows = append(flows, f)
	}
	return flows
}

func TestPurgeMany(t *testing.T) {
	table := openTable(t)
	fill(t, flood(3000, 53)...)
	fill(t, tcp("192.0.2.1", 100, tcpEstablished, busy, 600)...)
	for _, want := range []int{3000, 0} {
		if n, err := table.Purge(t.Context(), dns, nil, nil,
			nil); err != nil || n != want {
			t.Errorf("deleted %d, %v; want %d", n, err, want)
		}
	}
	if n, err := table.Count(); err != nil || n != 100 {
		t.Errorf("%d entries left, %v; want 100", n, err)
	}
}

func TestPurgeBudget(t *testing.T) {
	table := openTable(t)
	fill(t, flood(300, 53)...)
	if n, err := table.Purge(t.Context(), dns, nil, nil, rate.NewLimiter(0, 0)); err != nil || n != 0 {
		t.Errorf("without any budget: deleted %d, %v", n, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	context.AfterFunc(waitFor(func() bool { n, _ := table.Count(); return n <= 200 }), cancel)
	if n, err := table.Purge(ctx, dns, nil, nil, rate.NewLimiter(1e-9, 100)); err == nil || n != 100 {
		t.Errorf("with a budget of 100: deleted %d, %v", n, err)
	}
	if n, err := table.Purge(t.Context(), dns, nil, nil, rate.NewLimiter(1e6, 64)); err != nil || n != 200 {
		t.Errorf("with a large budget: deleted %d, %v", n, err)
	}
}

func TestPurgeEndsWithContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	table := openTable(t)
	fill(t, flood(10, 53)...)
	if n, err := table.Purge(ctx, dns, nil, nil, nil); !errors.Is(err,
		context.Canceled) || n != 0 {
		t.Errorf("deleted %d, %v", n, err)
	}
}

// BenchmarkPurge purges 30 000 entries of a table of 65 000.
func BenchmarkPurge(b *testing.B) {
	table := openTable(b)
	fill(b, flood(35_000, 54)...)
	litter := flood(30_000, 53)
	for b.Loop() {
		b.StopTimer()
		fill(b, litter...)
		b.StartTimer()
		if n, err := table.Purge(b.Context(), dns, nil, nil,
			nil); err != nil || n != len(litter) {
			b.Fatalf("deleted %d, %v", n, err)
		}
	}
}

// Of handshakes a purge takes those that were there the last time as well, and of nothing else: who has just begun has
// that long to finish, and what was finished is a conversation.
func TestPurgeUnfinished(t *testing.T) {
	table := openTable(t)
	const age = 50 * time.Millisecond
	all := policy.Purge{Class: policy.FlowClass{Protocol: protoTCP}, Unfinished: age}
	purge := func() int {
		n, err := table.Purge(t.Context(), all, nil, []netip.Prefix{netip.MustParsePrefix("192.0.2.9/32")}, nil)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	fill(t, tcp("192.0.2.1", 300, tcpSynRecv, conntrackfill.SeenReply, 60)...)
	six := tcp("2001:db8::1", 30, tcpSynSent, 0, 60)
	for i := range six {
		six[i].Dst = addr("2001:db8:1::1")
	}
	fill(t, six...)
	fill(t, tcp("192.0.2.9", 10, tcpSynRecv, conntrackfill.SeenReply, 60)...)
	fill(t, tcp("192.0.2.3", 10, tcpEstablished, conntrackfill.SeenReply, 60)...)
	if n := purge(); n != 0 {
		t.Errorf("the first purge took %d that may have begun just now", n)
	}
	if n := purge(); n != 0 {
		t.Errorf("a purge that came too soon took %d", n)
	}
	table.underWay.at = table.underWay.at.Add(-age)
	fill(t, tcp("192.0.2.2", 20, tcpSynRecv, conntrackfill.SeenReply, 60)...)
	if n := purge(); n < 330 || n > 335 { // one of them may share its bit
		t.Errorf("the second purge took %d, want the 330 from before", n)
	}
	left := make(map[netip.Addr]int)
	for _, e := range dump(t, table) {
		left[e.orig.src.netip()]++
	}
	for from, n := range map[string]int{"192.0.2.1": 0, "2001:db8::1": 0, "192.0.2.9": 10, "192.0.2.3": 10} {
		if got := left[addr(from)]; got != n {
			t.Errorf("%d of %s are left, want %d", got, from, n)
		}
	}
	if n := left[addr("192.0.2.2")]; n < 15 {
		t.Errorf("of 20 that had just begun %d are left", n)
	}
}
