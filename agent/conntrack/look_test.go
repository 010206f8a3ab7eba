package conntrack

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"ctguard/policy"
)

// A closer look tells roles, what inside hosts ask for and who answered them.
func TestLook(t *testing.T) {
	table := openTable(t)
	own, container := addr("203.0.113.1"), addr("10.0.0.2")
	udp := func(from, to string, port uint16, status uint32, n int) (list []flow) {
		for i := range n {
			list = append(list, flow{Src: addr(from), Dst: addr(to), Proto: unix.IPPROTO_UDP, SrcPort: uint16(1000 + i),
				DstPort: port, Timeout: 600, Status: status})
		}
		return list
	}
	const answered = statusSeenReply
	fill(t, udp("198.51.100.1", "203.0.113.1", 53, answered, 10)...)  // local
	fill(t, udp("203.0.113.1", "198.51.100.1", 53, answered, 20)...)  // own
	fill(t, udp("10.0.0.2", "192.0.2.1", 161, 0, 200)...)             // a scan
	fill(t, udp("10.0.0.2", "192.0.2.2", 53, answered, 30)...)        // and an ordinary question
	fill(t, udp("10.0.0.2", "203.0.113.1", 67, answered, 1)...)       // to this host
	fill(t, udp("198.51.100.1", "10.0.0.2", 80, answered, 40)...)     // routed inwards
	fill(t, udp("198.51.100.1", "198.51.100.99", 80, answered, 5)...) // and through
	fill(t, flow{Src: addr("198.51.100.1"), Dst: own, Proto: unix.IPPROTO_UDP, SrcPort: 9, DstPort: 8080, Timeout: 600,
		Status: answered, NewDst: container})
	o := ScanOptions{Own: []netip.Prefix{netip.PrefixFrom(own, 32)},
		Inside: []netip.Prefix{prefix("10.0.0.0/24")}}
	c, err := table.Scan(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	want := [policy.NumRoles]int{policy.Local: 11, policy.Own: 20, policy.Outward: 230, policy.Inward: 41,
		policy.Through: 5}
	if c.Roles != want {
		t.Errorf("roles %v, want %v", c.Roles, want)
	}
	host := netip.PrefixFrom(container, 32)
	suspects := c.Suspects(policy.Host{Inside: o.Inside}, nil)
	if !slices.Equal(suspects, []policy.Source{{Prefix: host}}) {
		t.Fatalf("suspects are %v, want %v", suspects, host)
	}
	o.Closer = suspects
	if c, err = table.Scan(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	for _, s := range c.Sources {
		if s.Prefix != host {
			if s.Look != nil {
				t.Errorf("a closer look at %v", s)
			}
			continue
		}
		slices.SortFunc(s.Look.Peers, netip.Addr.Compare)
		wanted := &policy.Look{Entries: 231, Answered: 31, Forwarded: 230, Flows: []policy.FlowCount{
			{FlowClass: policy.FlowClass{Protocol: protoUDP, Port: 161}, Entries: 200},
			{FlowClass: policy.FlowClass{Protocol: protoUDP, Port: 53}, Entries: 30, Answered: 30},
			{FlowClass: policy.FlowClass{Protocol: protoUDP, Port: 67}, Entries: 1, Answered: 1},
		}, Closer: true, Peers: []netip.Addr{addr("192.0.2.2"), own}}
		if diff := cmp.Diff(wanted, s.Look, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
			t.Errorf("-want +got:\n%s", diff)
		}
	}
}

// What this host forwards stays, where that is asked for: routed or translated, from outside and from inside; or all
// but what leads to inside hosts, of translated ones to those that are masqueraded. What is its own goes.
func TestEvictSparesForwarded(t *testing.T) {
	table := openTable(t)
	own, from := addr("203.0.113.1"), addr("198.51.100.1")
	one := func(f flow, first uint16, n int) (list []flow) {
		for i := range n {
			f.Src, f.Proto, f.SrcPort, f.DstPort, f.State = from, unix.IPPROTO_TCP, first+uint16(i), 80, tcpEstablished
			f.Status, f.Timeout = statusSeenReply|statusAssured, 6000
			list = append(list, f)
		}
		return list
	}
	local, routed := one(flow{Dst: own}, 1000, 20), one(flow{Dst: addr("10.0.0.2")}, 2000, 10)
	translated := one(flow{Dst: own, NewDst: addr("10.0.0.3")}, 3000, 10)
	fill(t, local...)
	fill(t, routed...)
	fill(t, translated...)
	all := map[string][]flow{"local": local, "routed": routed, "translated": translated}
	for _, c := range []struct {
		inward bool
		inside string
		goes   []string
	}{
		{false, "10.0.0.0/24", []string{"local"}},
		{true, "10.0.0.4/32", nil},
		{true, "198.51.100.0/24", nil}, // the source itself is inside
		{true, "10.0.0.3/32", []string{"translated"}},
		{true, "10.0.0.0/24", []string{"routed"}},
	} {
		v := Eviction{Caps: []policy.Cap{{Prefix: netip.PrefixFrom(from, 32), SpareForward: true, TakeInward: c.inward}},
			Own: []netip.Prefix{netip.PrefixFrom(own, 32)}, Inside: []netip.Prefix{prefix(c.inside)}}
		_, err := table.Evict(t.Context(), v)
		for name, list := range all {
			if went := len(kept(t, table, list)) == 0; went != slices.Contains(c.goes, name) || err != nil {
				t.Errorf("%+v: %s went: %t (%v)", c, name, went, err)
			}
		}
		for _, name := range c.goes {
			delete(all, name)
		}
	}
}

// A closer look tells whose the entries of the largest classes are, as far as they do not last.
func TestLookAtClasses(t *testing.T) {
	table := openTable(t)
	own, inside, client := addr("203.0.113.1"), addr("192.0.2.10"), addr("198.51.100.1")
	n := 0
	several := func(how int, f flow) {
		var list []flow
		for range how {
			n++
			f.Src, f.SrcPort, f.Timeout = client, uint16(1000+n), 600
			list = append(list, f)
		}
		fill(t, list...)
	}
	const answered = statusSeenReply
	several(300, flow{Dst: inside, Proto: protoUDP, DstPort: 53, Status: answered})
	several(100, flow{Dst: own, Proto: protoUDP, DstPort: 53, Status: answered})
	several(50, flow{Dst: inside, Proto: protoUDP, DstPort: 53})
	several(50, flow{Dst: inside, Proto: protoUDP, DstPort: 53, Status: busy})
	several(300, flow{Dst: own, NewDst: inside, Proto: protoUDP, DstPort: 54, Status: answered})
	several(70, flow{Dst: inside, Proto: protoTCP, DstPort: 80, State: tcpSynRecv, Status: answered})
	several(65, flow{Dst: inside.Next(), Proto: protoTCP, DstPort: 80, State: tcpSynRecv, Status: answered})
	several(65, flow{Dst: inside.Prev(), Proto: protoTCP, DstPort: 80, State: tcpSynRecv, Status: answered})
	several(10, flow{Dst: inside, Proto: protoTCP, DstPort: 80, State: tcpTimeWait, Status: answered})
	several(100, flow{Dst: inside, Proto: protoTCP, DstPort: 81, State: tcpSynRecv, Status: answered}) // too few
	c, err := table.Scan(t.Context(), ScanOptions{Own: []netip.Prefix{netip.PrefixFrom(own, 32)}})
	if err != nil {
		t.Fatal(err)
	}
	want := []policy.ClassLook{
		{FlowClass: policy.FlowClass{Protocol: protoUDP, Port: 53}, Entries: 450, Local: 100, Passing: 300,
			To: inside},
		{FlowClass: policy.FlowClass{Protocol: protoUDP, Port: 54}, Entries: 300, Translated: 300},
		{FlowClass: policy.FlowClass{Protocol: protoTCP, Port: 80}, Entries: 210, Passing: 200}}
	if !slices.Equal(c.Looks, want) {
		t.Errorf("%+v, want %+v", c.Looks, want)
	}
}
