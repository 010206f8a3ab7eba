package conntrack

import (
	"context"
	"maps"
	"net/netip"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"

	"ctguard/agent/conntrack/conntrackfill"
	"ctguard/policy"
)

const busy = conntrackfill.SeenReply | conntrackfill.Assured

// classesOf counts what a source still holds.
func classesOf(t *testing.T, table *Table, source string) (c [policy.NumClasses]int) {
	t.Helper()
	for _, e := range dump(t, table) {
		if e.orig.src.netip() == addr(source) && !e.goes() {
			c[e.class(false)]++
		}
	}
	return c
}

// ladder gives a source ten entries of each class.
func ladder(src string) []flow {
	flows := slices.Concat(
		tcp(src, 10, tcpSynSent, 0, 100),
		tcp(src, 10, tcpSynRecv, conntrackfill.SeenReply, 100),
		tcp(src, 10, tcpTimeWait, busy, 100),
		tcp(src, 10, tcpEstablished, conntrackfill.SeenReply, 100),
		tcp(src, 10, tcpEstablished, busy, 100),
	)
	for i := range flows {
		flows[i].SrcPort = uint16(5000 + i)
	}
	return flows
}

func TestEvictOrder(t *testing.T) {
	table := openTable(t)
	for _, c := range []struct {
		name  string
		cap   policy.Cap
		want  [policy.NumClasses]int
		spare []netip.Prefix
	}{
		{name: "nothing to do", cap: policy.Cap{Keep: 50}, want: [policy.NumClasses]int{10, 10, 10, 10, 10}},
		{name: "some unreplied", cap: policy.Cap{Keep: 47}, want: [policy.NumClasses]int{7, 10, 10, 10, 10}},
		{name: "into half-open", cap: policy.Cap{Keep: 35}, want: [policy.NumClasses]int{0, 5, 10, 10, 10}},
		{name: "into closing", cap: policy.Cap{Keep: 22}, want: [policy.NumClasses]int{0, 0, 2, 10, 10}},
		{name: "into replied", cap: policy.Cap{Keep: 11}, want: [policy.NumClasses]int{0, 0, 0, 1, 10}},
		{name: "into assured", cap: policy.Cap{Keep: 4}, want: [policy.NumClasses]int{0, 0, 0, 0, 4}},
		{name: "all", cap: policy.Cap{Keep: 0}, want: [policy.NumClasses]int{}},
		{name: "assured spared", cap: policy.Cap{Keep: 4, SpareAssured: true}, want: [policy.NumClasses]int{0, 0, 0, 0, 10}},
		{name: "allowlisted", cap: policy.Cap{Keep: 4}, want: [policy.NumClasses]int{10, 10, 10, 10, 10},
			spare: []netip.Prefix{prefix("192.0.2.0/24")}},
	} {
		for _, way := range []string{"ranked", "counted"} {
			func() { // not a subtest: those have threads, and so namespaces, of their own
				name := c.name + ", " + way
				if _, err := table.Remove(t.Context(), EntryFilter{Source: prefix("0.0.0.0/0")}, nil, false, nil); err != nil {
					t.Fatal(err)
				}
				fill(t, ladder("192.0.2.1")...)
				fill(t, ladder("198.51.100.7")...) // somebody else
				c.cap.Prefix = prefix("192.0.2.1/32")
				if way == "counted" {
					defer func(n int) { heapLimit = n }(heapLimit)
					heapLimit = -1
				}
				got, err := table.Evict(t.Context(), Eviction{Caps: []policy.Cap{c.cap}, Spare: c.spare})
				if err != nil {
					t.Fatal(err)
				}
				if has := classesOf(t, table, "192.0.2.1"); has != c.want {
					t.Errorf("%s: left over %v, want %v", name, has, c.want)
				}
				deleted := 50
				for _, n := range c.want {
					deleted -= n
				}
				if got != deleted {
					t.Errorf("%s: reported %d, want %d deleted", name, got, deleted)
				}
				if has := classesOf(t, table, "198.51.100.7"); has != [policy.NumClasses]int{10, 10, 10, 10, 10} {
					t.Errorf("%s: a bystander lost entries: %v", name, has)
				}
			}()
		}
	}
}

// Of equal class, those that have been idle for longest go.
func TestEvictOldestFirst(t *testing.T) {
	for _, way := range []string{"ranked", "counted"} {
		t.Run(way, func(t *testing.T) {
			table := openTable(t)
			flows := tcp("192.0.2.1", 32, tcpEstablished, busy, 0)
			for i := range flows {
				flows[i].Timeout = uint32(1000 * (1 + (i*7)%32)) // every thousand once, in no order
			}
			fill(t, flows...)
			if way == "counted" {
				defer func(n int) { heapLimit = n }(heapLimit)
				heapLimit = -1
			}
			got, err := table.Evict(t.Context(), Eviction{Caps: []policy.Cap{{Prefix: prefix("192.0.2.1/32"), Keep: 8}}})
			if err != nil || got != 24 {
				t.Fatalf("%d, %v", got, err)
			}
			for _, e := range dump(t, table) {
				if e.timeout < 24_900 {
					t.Errorf("an entry with %d seconds left survived", e.timeout)
				}
			}
		})
	}
}

func TestEvictEveryProtocol(t *testing.T) {
	table := openTable(t)
	flows := mixed()
	fill(t, flows...)
	got, err := table.Evict(t.Context(), Eviction{Caps: []policy.Cap{{Prefix: prefix("0.0.0.0/0")},
		{Prefix: prefix("0.0.0.0/0"), Zone: 9}, {Prefix: prefix("::/0")}}})
	if err != nil || got != len(flows) {
		t.Errorf("%d, %v; want %d", got, err, len(flows))
	}
	for _, e := range dump(t, table) {
		if !e.goes() {
			t.Errorf("%+v survived", e.orig)
		}
	}
}

// A more special cap wins over a more general one, and IPv6 sources are judged by their prefix.
func TestEvictPrefixes(t *testing.T) {
	table := openTable(t)
	fill(t, tcp("192.0.2.1", 20, tcpSynSent, 0, 60)...)
	fill(t, tcp("192.0.2.2", 20, tcpSynSent, 0, 60)...)
	for i := range 20 {
		fill(t, flow{Src: nth(addr("2001:db8::"), i), Dst: addr("2001:db8:1::1"), Proto: unix.IPPROTO_UDP, SrcPort: 5,
			DstPort: 53, Timeout: 30})
	}
	got, err := table.Evict(t.Context(), Eviction{Caps: []policy.Cap{
		{Prefix: prefix("192.0.2.0/24"), Keep: 3},
		{Prefix: prefix("192.0.2.2/32"), Keep: 11},
		{Prefix: prefix("2001:db8::/64"), Keep: 5},
	}})
	if err != nil {
		t.Fatal(err)
	}
	if got != 17+9+15 {
		t.Errorf("deleted %d, want %d", got, 17+9+15)
	}
	left := make(map[netip.Prefix]int)
	for _, e := range dump(t, table) {
		switch src := e.orig.src.netip(); {
		case prefix("192.0.2.2/32").Contains(src):
			left[prefix("192.0.2.2/32")]++
		case prefix("192.0.2.0/24").Contains(src):
			left[prefix("192.0.2.0/24")]++
		default:
			left[prefix("2001:db8::/64")]++
		}
	}
	want := map[netip.Prefix]int{prefix("192.0.2.0/24"): 3, prefix("192.0.2.2/32"): 11, prefix("2001:db8::/64"): 5}
	if !maps.Equal(left, want) {
		t.Errorf("left %v, want %v", left, want)
	}
}

func TestEvictSelectors(t *testing.T) {
	host, guest, other := addr("198.51.100.1"), addr("192.0.2.1"), addr("203.0.113.9")
	local := func(ip netip.Addr) bool { return ip == host || ip == addr("2001:db8:1::1") }
	f := func(proto uint8, src, dst netip.Addr, port uint16) flow {
		return flow{Src: src, Dst: dst, Proto: proto, SrcPort: 4000, DstPort: port, Timeout: 60, Status: busy}
	}
	nat := f(unix.IPPROTO_TCP, guest, host, 80)
	nat.SrcPort, nat.ReplySrc = 4001, addr("10.0.0.1")
	unreachable := f(unix.IPPROTO_ICMP, guest, host, 0)
	unreachable.Type, unreachable.SrcPort = 13, 9 // timestamp request
	echo6 := f(unix.IPPROTO_ICMPV6, addr("2001:db8::1"), addr("2001:db8:1::1"), 0)
	zoned := f(unix.IPPROTO_TCP, guest, host, 80)
	zoned.Zone = 3
	all := []flow{
		f(unix.IPPROTO_TCP, guest, host, 80),  // 0
		f(unix.IPPROTO_TCP, guest, host, 81),  // 1
		f(unix.IPPROTO_TCP, guest, other, 80), // 2: forwarded
		f(unix.IPPROTO_TCP, host, other, 80),  // 3: this host is the client
		f(unix.IPPROTO_TCP, host, host, 80),   // 4: loopback
		nat,                                   // 5
		f(unix.IPPROTO_UDP, guest, host, 80),  // 6
		f(unix.IPPROTO_ICMP, guest, host, 0),  // 7
		unreachable,                           // 8
		echo6,                                 // 9
		f(unix.IPPROTO_UDP, guest, addr("224.0.0.251"), 5353),   // 10
		f(unix.IPPROTO_UDP, guest, addr("255.255.255.255"), 67), // 11
		f(unix.IPPROTO_TCP, other, host, 80),                    // 12
		zoned,                                                   // 13
	}
	web := policy.Selector{Protocol: policy.TCP, Port: 80}
	form := func(texts ...string) (list []policy.Selector) {
		for _, text := range texts {
			s, err := policy.ParseSelector(text)
			if err != nil {
				t.Fatal(err)
			}
			list = append(list, s)
		}
		return list
	}
	for _, c := range []struct {
		name      string
		selectors []policy.Selector
		spare     []netip.Prefix
		want      []int
	}{
		{"service", []policy.Selector{web}, nil, []int{0, 12, 13}},
		{"service for one remote", []policy.Selector{{Protocol: policy.TCP, Port: 80, Remote: prefix("192.0.2.0/24")}}, nil,
			[]int{0, 13}},
		{"allowlisted", []policy.Selector{web}, []netip.Prefix{prefix("192.0.2.1/32")}, []int{12}},
		{"udp", []policy.Selector{{Protocol: policy.UDP, Port: 80}}, nil, []int{6}},
		{"echo", []policy.Selector{{Protocol: policy.ICMP}}, nil, []int{7, 9}},
		{"group", []policy.Selector{{Group: true}}, nil, []int{10, 11}},
		{"ports", form("tcp/1-80", "tcp/82-65535"), nil, []int{0, 12, 13}},
		{"all ports", form("tcp"), nil, []int{0, 1, 3, 12, 13}},
		{"all ports for one remote", form("tcp with 203.0.113.0/24"), nil, []int{3, 12}},
		{"own address", form("tcp/80 with 192.0.2.1/32 at 198.51.100.0/24", "udp at 198.51.100.1/32",
			"echo at 2001:db8:1::/64"), nil, []int{0, 6, 9, 13}},
		{"another own address", form("tcp/80 at 198.51.100.2/31", "tcp at 192.0.2.0/24", "echo at 10.0.0.0/8",
			"udp/1-99 at ::/0"), nil, nil},
		{"everything", form("all"), nil, []int{0, 1, 3, 6, 7, 8, 9, 12, 13}},
		{"an interface, which entries don't tell", form("tcp/80 on eth0", "udp on eth0", "echo on eth0"), nil, nil},
		{"several", []policy.Selector{web, {Protocol: policy.TCP, Port: 81}, {Group: true}}, nil,
			[]int{0, 1, 10, 11, 12, 13}},
	} {
		t.Run(c.name, func(t *testing.T) {
			table := openTable(t)
			fill(t, all...)
			got, err := table.Evict(t.Context(), Eviction{Selectors: c.selectors, Local: local, Spare: c.spare})
			if err != nil || got != len(c.want) {
				t.Errorf("%d, %v; want %d freed", got, err, len(c.want))
			}
			left := make(map[tuple]bool)
			for _, e := range dump(t, table) {
				e.orig.icmpCode = uint8(len(e.bytes(e.zoneSpan))) // tells the zoned flow from its twin
				left[e.orig] = true
			}
			for i, f := range all {
				k := tuple{src: addressOf(f.Src), dst: addressOf(f.Dst), srcPort: f.SrcPort, dstPort: f.DstPort, proto: f.Proto}
				if f.Zone != 0 {
					k.icmpCode = 8
				}
				switch f.Proto {
				case unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6:
					k.icmpType = map[uint8]uint8{unix.IPPROTO_ICMP: 8, unix.IPPROTO_ICMPV6: 128}[f.Proto]
					if f.Type != 0 {
						k.icmpType = f.Type
					}
					k.icmpID, k.srcPort, k.dstPort = f.SrcPort, 0, 0
				}
				if gone := slices.Contains(c.want, i); left[k] == gone {
					t.Errorf("flow %d: deleted %v, want %v", i, !left[k], gone)
				}
			}
		})
	}
}

func TestEvictBudget(t *testing.T) {
	table := openTable(t)
	fill(t, tcp("192.0.2.1", 300, tcpSynSent, 0, 60)...)
	v := Eviction{Caps: []policy.Cap{{Prefix: prefix("192.0.2.1/32"), Keep: 10}}}
	t.Run("no budget at all", func(t *testing.T) {
		v.Rate = rate.NewLimiter(0, 0)
		got, err := table.Evict(t.Context(), v)
		if err != nil || got != 0 || count(t, table) != 300 {
			t.Errorf("%d, %v", got, err)
		}
	})
	t.Run("ends with its context", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		v.Rate = rate.NewLimiter(1e-9, 100) // a hundred, then practically never
		context.AfterFunc(waitFor(func() bool { n, _ := table.Count(); return n <= 200 }), cancel)
		got, err := table.Evict(ctx, v)
		if err == nil || got != 100 {
			t.Errorf("%d, %v", got, err)
		}
		if n, _ := table.Count(); n != 200 {
			t.Errorf("%d entries left, want 200", n)
		}
	})
	t.Run("enough", func(t *testing.T) {
		v.Rate = rate.NewLimiter(1e6, 64)
		got, err := table.Evict(t.Context(), v)
		if err != nil || got != 190 || count(t, table) != 10 {
			t.Errorf("%d, %v", got, err)
		}
	})
}

// count returns how many entries the table has.
func count(t *testing.T, table *Table) int {
	t.Helper()
	n, err := table.Count()
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// waitFor returns a context that ends when a condition holds.
func waitFor(holds func() bool) context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		for !holds() {
		}
		cancel()
	}()
	return ctx
}

// What has just spoken is spared where that is asked for, whatever the excess; what is idle goes.
func TestEvictSparesRecent(t *testing.T) {
	table := openTable(t)
	held := func(n int, left uint32) []flow { return tcp("192.0.2.1", n, tcpEstablished, busy, left) }
	recent, idle := held(5, 1000), held(9, 900)[5:]
	fill(t, slices.Concat(recent, idle)...)
	e := Eviction{Timeouts: map[string]int{"nf_conntrack_tcp_timeout_established": 1000}}
	for _, c := range []struct {
		cap  policy.Cap
		left int
	}{
		{policy.Cap{Prefix: prefix("192.0.2.1/32"), Keep: 7, SpareRecent: true}, 7},
		{policy.Cap{Prefix: prefix("192.0.2.1/32"), Keep: 1, SpareRecent: true}, 5},
		{policy.Cap{Prefix: prefix("192.0.2.1/32"), Keep: 1}, 1},
	} {
		e.Caps = []policy.Cap{c.cap}
		if _, err := table.Evict(t.Context(), e); err != nil {
			t.Fatal(err)
		}
		if left := len(dump(t, table)); left != c.left {
			t.Errorf("%+v: %d left, want %d", c.cap, left, c.left)
		}
	}
}

// After pressure entries have what tighten gave them, and the settings are back: who spoke lately is not taken for
// idle.
func TestEvictSparesRetimed(t *testing.T) {
	table := openTable(t)
	held := func(n int, left uint32) []flow { return tcp("192.0.2.1", n, tcpEstablished, busy, left) }
	fill(t, slices.Concat(held(5, 990), held(9, 900)[5:])...)
	const established = "nf_conntrack_tcp_timeout_established"
	e := Eviction{Caps: []policy.Cap{{Prefix: prefix("192.0.2.1/32"), Keep: 1, SpareRecent: true}},
		Timeouts: map[string]int{established: 432_000}, Retimed: map[string]int{established: 1000}}
	if n, err := table.Evict(t.Context(), e); err != nil || n != 4 {
		t.Errorf("evicted %d, want the 4 that were silent for long (%v)", n, err)
	}
}

// A cap is for the entries of its zone, whichever way that was given. Who names no zone means all of them.
func TestEvictInZone(t *testing.T) {
	guest := prefix("192.0.2.1/32")
	for name, can := range map[string]*Capabilities{
		"as this kernel can": nil, "reading the whole table": {},
	} {
		t.Run(name, func(t *testing.T) {
			table := openTable(t)
			table.force = can
			var all []flow
			for zone := range uint16(4) {
				for _, f := range tcp("192.0.2.1", 10, tcpSynSent, 0, 60) {
					if f.Zone = zone; zone == 3 {
						f.Zone, f.OpenedIn, f.SrcPort = 0, 3, f.SrcPort+100 // or two had the same answers
					}
					all = append(all, f)
				}
			}
			fill(t, all...)
			n, err := table.Evict(t.Context(), Eviction{Caps: []policy.Cap{{Prefix: guest, Zone: 1, Keep: 4},
				{Prefix: guest, Zone: 3, Keep: 2}}})
			left := map[uint16]int{}
			for _, e := range dump(t, table) {
				left[e.zone()]++
			}
			if want := map[uint16]int{0: 10, 1: 4, 2: 10, 3: 2}; err != nil || n != 14 || !maps.Equal(left, want) {
				t.Errorf("%d evicted (%v), %v left, want %v", n, err, left, want)
			}
			if n, err := table.Remove(t.Context(), EntryFilter{Source: guest}, nil, false, nil); err != nil || n != 26 {
				t.Errorf("%d evicted of every zone (%v), want 26", n, err)
			}
			if left := dump(t, table); len(left) > 0 {
				t.Errorf("%d entries are left", len(left))
			}
		})
	}
}
