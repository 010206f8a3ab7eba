package conntrack

import (
	"context"
	"errors"
	"maps"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ctguard/agent/conntrack/conntrackfill"
	"ctguard/policy"
)

// mixed is one flow of everything the kernel tracks.
func mixed() []flow {
	return slices.Concat(
		tcp("192.0.2.1", 10, tcpSynSent, 0, 60),
		tcp("192.0.2.2", 5, tcpSynRecv, conntrackfill.SeenReply, 60),
		tcp("192.0.2.3", 3, tcpTimeWait, conntrackfill.SeenReply|conntrackfill.Assured, 60),
		tcp("192.0.2.4", 2, tcpEstablished, conntrackfill.SeenReply|conntrackfill.Assured, 3000),
		[]flow{
			{Src: addr("2001:db8::1"), Dst: addr("2001:db8:1::1"), Proto: unix.IPPROTO_UDP, SrcPort: 5, DstPort: 53,
				Timeout: 30},
			{Src: addr("2001:db8::2"), Dst: addr("2001:db8:1::1"), Proto: unix.IPPROTO_UDP, SrcPort: 5, DstPort: 53,
				Timeout: 30, Status: conntrackfill.SeenReply},
			{Src: addr("2001:db8:2::1"), Dst: addr("2001:db8:1::1"), Proto: unix.IPPROTO_ICMPV6, SrcPort: 77, Timeout: 30},
			{Src: addr("192.0.2.5"), Dst: addr("198.51.100.1"), Proto: unix.IPPROTO_ICMP, SrcPort: 77, Timeout: 30},
			{Src: addr("192.0.2.5"), Dst: addr("198.51.100.1"), Proto: unix.IPPROTO_SCTP, SrcPort: 77, DstPort: 99, State: 4,
				Timeout: 30},
			{Src: addr("192.0.2.5"), Dst: addr("198.51.100.1"), Proto: unix.IPPROTO_GRE, SrcPort: 7, DstPort: 8, Timeout: 30},
			{Src: addr("192.0.2.5"), Dst: addr("198.51.100.1"), Proto: 50, Timeout: 30},
			{Src: addr("192.0.2.5"), Dst: addr("198.51.100.1"), Proto: unix.IPPROTO_DCCP, Timeout: 30},
			{Src: addr("192.0.2.5"), Dst: addr("198.51.100.1"), Proto: 50, Timeout: 30, Zone: 9},
		},
	)
}

func TestScanWhole(t *testing.T) {
	table := openTable(t)
	flows := mixed()
	fill(t, flows...)
	c, err := table.Scan(t.Context(), ScanOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if !c.Whole || c.Seen != len(flows) || c.Total != len(flows) {
		t.Errorf("whole %v, seen %d, total %d; want whole and %d", c.Whole, c.Seen, c.Total, len(flows))
	}
	if want := [policy.NumClasses]int{18, 5, 3, 1, 2}; c.Classes != want {
		t.Errorf("classes %v, want %v", c.Classes, want)
	}
	for proto, want := range map[uint8]int{6: 20, 17: 2, 58: 1, 1: 1, 132: 1, 47: 1, 50: 2, 33: 1} {
		if c.Protocols[proto] != want {
			t.Errorf("protocol %d: %d entries, want %d", proto, c.Protocols[proto], want)
		}
	}
	if want := map[uint8]int{6: 10, 17: 1}; !maps.Equal(c.ProtocolsReplied, want) {
		t.Errorf("replied %v, want %v by protocol", c.ProtocolsReplied, want)
	}
	udp := slices.IndexFunc(c.Ports, func(p policy.PortCount) bool { return p.Protocol == 17 })
	if want := (policy.PortCount{Protocol: 17, Port: 53, Entries: 2, Replied: 1}); udp < 0 || c.Ports[udp] != want {
		t.Errorf("ports %+v, want two flows of udp/53 and one of them with a reply", c.Ports)
	}
	for state, want := range map[uint8]int{tcpSynSent: 10, tcpSynRecv: 5, tcpTimeWait: 3, tcpEstablished: 2} {
		if c.TCPStates[state] != want {
			t.Errorf("TCP state %d: %d entries, want %d", state, c.TCPStates[state], want)
		}
	}
	if want := (policy.PortCount{Protocol: 6, Port: 80, Entries: 20, Replied: 10}); c.Ports[0] != want {
		t.Errorf("largest port %+v, want %+v", c.Ports[0], want)
	}
	if want := (policy.Holding{Prefix: prefix("192.0.2.1/32"), Entries: 10,
		Classes: [policy.NumClasses]int{10}}); c.Sources[0] != want {
		t.Errorf("largest source %+v, want %+v", c.Sources[0], want)
	}
	i := slices.IndexFunc(c.Sources, func(h policy.Holding) bool { return h.Prefix == prefix("2001:db8::/64") })
	if i < 0 || c.Sources[i].Entries != 2 {
		t.Errorf("two IPv6 neighbours are not one source: %+v", c.Sources)
	}
	shaken := 0
	for _, h := range c.Sources {
		shaken += h.Proven
	}
	if shaken != 2 {
		t.Errorf("%d entries have proven whose they are, want the 2 established ones", shaken)
	}
	if c.Distinct != 8 || len(c.Sources) != 8 || c.Rest.Entries != 0 {
		t.Errorf("distinct %d, listed %d, rest %+v; want 8, 8, none", c.Distinct, len(c.Sources), c.Rest)
	}
}

// What an eviction has let run out a moment ago is there, and nobody's: a scan that follows at once would else take it
// for what its source has opened anew.
func TestScanAfterEviction(t *testing.T) {
	table := openTable(t)
	fill(t, tcp("192.0.2.1", 50, tcpTimeWait, busy, 60)...)
	caps := []policy.Cap{{Prefix: prefix("192.0.2.1/32"), Keep: 10}}
	if n, err := table.Evict(t.Context(), Eviction{Caps: caps}); n != 40 {
		t.Fatalf("evicted %d entries, want 40 (%v)", n, err)
	}
	c, err := table.Scan(t.Context(), ScanOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if c.Seen != 50 {
		t.Fatalf("%d entries are there, want all: nothing is shown", c.Seen)
	}
	if len(c.Sources) != 1 || c.Sources[0].Entries != 10 {
		t.Errorf("after 40 of 50 were evicted: %+v", c.Sources)
	}
}

func TestScanOptions(t *testing.T) {
	table := openTable(t)
	flows := mixed()
	fill(t, flows...)
	t.Run("limit", func(t *testing.T) {
		c, err := table.Scan(t.Context(), ScanOptions{Limit: 12})
		if err != nil || c.Whole || c.Seen != 12 || c.Total != len(flows) {
			t.Errorf("%+v, %v", c, err)
		}
	})
	t.Run("limit above the table", func(t *testing.T) {
		c, err := table.Scan(t.Context(), ScanOptions{Limit: 1000})
		if err != nil || !c.Whole || c.Seen != len(flows) {
			t.Errorf("%+v, %v", c, err)
		}
	})
	t.Run("budget", func(t *testing.T) {
		c, err := table.Scan(t.Context(), ScanOptions{Budget: time.Nanosecond})
		if err != nil || c.Whole {
			t.Errorf("%+v, %v", c, err)
		}
	})
	t.Run("budget while others have the processors", func(t *testing.T) {
		const budget = 50 * time.Millisecond
		waited := false
		end, err := table.walk(t.Context(), part{}, budget, func(*entry) bool {
			if !waited {
				time.Sleep(2 * budget) // in which this thread does nothing
				waited = true
			}
			return true
		})
		if err != nil || !end.whole || !waited {
			t.Errorf("%+v, %v, waited %t", end, err, waited)
		}
	})
	t.Run("coarse sources", func(t *testing.T) {
		c, err := table.Scan(t.Context(), ScanOptions{V4Bits: 24, V6Bits: 32})
		if err != nil || c.Distinct != 3 ||
			c.Sources[0].Prefix != prefix("192.0.2.0/24") || c.Sources[1].Prefix != prefix("2001:db8::/32") {
			t.Errorf("%+v, %v", c, err)
		}
	})
	t.Run("exact IPv6", func(t *testing.T) {
		c, err := table.Scan(t.Context(), ScanOptions{V6Bits: 128})
		if err != nil || c.Distinct != 9 {
			t.Errorf("%+v, %v", c, err)
		}
	})
	t.Run("few listed", func(t *testing.T) {
		defer func(n int) { maxPorts = n }(maxPorts)
		maxPorts = 1
		c, err := table.Scan(t.Context(), ScanOptions{MaxSources: 1})
		if err != nil || len(c.Sources) != 1 || c.Sources[0].Entries != 10 ||
			len(c.Ports) != 1 || c.Rest.Entries != len(flows)-10 || c.Distinct != 8 {
			t.Errorf("%+v, %v", c, err)
		}
	})
	t.Run("cancelled", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := table.Scan(ctx, ScanOptions{}); !errors.Is(err, context.Canceled) {
			t.Errorf("error %v", err)
		}
	})
}

// A table that changes under the scan may be seen torn, but never fails.
func TestScanWhileChanging(t *testing.T) {
	table := openTable(t)
	const sources, each = 20, 1000
	for i := range sources {
		fill(t, tcp(nth(addr("192.0.2.0"), i).String(), each, tcpSynSent, 0, 60)...)
	}
	other, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	done := make(chan int)
	go func() {
		deleted := 0
		for i := range sources {
			of := EntryFilter{Source: netip.PrefixFrom(nth(addr("192.0.2.0"), i), 32)}
			n, err := other.Remove(context.Background(), of, nil, false, nil)
			if err != nil {
				t.Error(err)
			}
			deleted += n
		}
		done <- deleted
	}()
	for {
		c, err := table.Scan(t.Context(), ScanOptions{})
		if err != nil || !c.Whole || c.Total < c.Seen {
			t.Fatalf("%+v, %v", c, err)
		}
		select {
		case deleted := <-done:
			if deleted != sources*each {
				t.Errorf("deleted %d, want %d", deleted, sources*each)
			}
			return
		default:
		}
	}
}

// A census lists the flows of which this host sees one direction, so that two of them tell whether they last.
func TestScanOneWay(t *testing.T) {
	table := openTable(t)
	fill(t, slices.Concat(
		tcp("192.0.2.1", 1, tcpEstablished, 0, 300),
		tcp("192.0.2.2", 1, tcpEstablished, conntrackfill.SeenReply, 300),
		tcp("192.0.2.3", 1, tcpSynSent, 0, 60))...)
	first, err := table.Scan(t.Context(), ScanOptions{})
	if err != nil {
		t.Fatal(err)
	}
	second, err := table.Scan(t.Context(), ScanOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if len(first.OneWay) != 1 || len(second.OneWay) != 1 ||
		first.OneWay[0].ID == 0 || first.OneWay[0].ID != second.OneWay[0].ID {
		t.Fatalf("one-way flows %v, then %v; want the same one", first.OneWay, second.OneWay)
	}
	if left := first.OneWay[0].Left; left < 295 || left > 300 {
		t.Errorf("%d seconds left, want about 300", left)
	}
	fill(t, tcp("192.0.2.9", 2*mostOneWay, tcpEstablished, 0, 300)...)
	if c, err := table.Scan(t.Context(), ScanOptions{}); err != nil || len(c.OneWay) != mostOneWay {
		t.Errorf("lists %d one-way flows (%v), want %d", len(c.OneWay), err, mostOneWay)
	}
}

// In a router's own LAN each host is a source; elsewhere a network of /64 is.
func TestScanApart(t *testing.T) {
	table := openTable(t)
	for i, src := range []string{"2001:db8:1::10", "2001:db8:1::66", "2001:db8:1::66", "2001:db8:2::1", "2001:db8:2::2"} {
		fill(t, flow{Src: addr(src), Dst: addr("2001:db8:ff::1"), Proto: unix.IPPROTO_UDP,
			SrcPort: uint16(100 + i), DstPort: 53, Timeout: 30})
	}
	c, err := table.Scan(t.Context(), ScanOptions{Apart: []netip.Addr{addr("2001:db8:1::1"), addr("192.0.2.1")}})
	if err != nil {
		t.Fatal(err)
	}
	got := make(map[string]int)
	for _, s := range c.Sources {
		got[s.Prefix.String()] = s.Entries
	}
	want := map[string]int{"2001:db8:1::10/128": 1, "2001:db8:1::66/128": 2, "2001:db8:2::/64": 2}
	if !maps.Equal(got, want) {
		t.Errorf("sources %v, want %v", got, want)
	}
}

// One address in several zones is as many sources, whichever way the zone was given.
func TestScanZones(t *testing.T) {
	table := openTable(t)
	in := func(n int, zone, openedIn uint16) []flow {
		list := tcp("192.0.2.1", n, tcpSynSent, 0, 60)
		for i := range list {
			list[i].Zone, list[i].OpenedIn = zone, openedIn
			list[i].SrcPort += 100 * openedIn // or the answers to two of them would be the same
		}
		return list
	}
	fill(t, slices.Concat(in(9, 0, 0), in(7, 1, 0), in(5, 0, 2))...)
	fill(t, flow{Src: addr("192.0.2.1"), Dst: addr("198.51.100.1"), Proto: unix.IPPROTO_ICMP, SrcPort: 77, Timeout: 30,
		OpenedIn: 2})
	c, err := table.Scan(t.Context(), ScanOptions{})
	if err != nil {
		t.Fatal(err)
	}
	got := map[policy.Source]int{}
	for _, s := range c.Sources {
		got[s.Source()] = s.Entries
	}
	one := prefix("192.0.2.1/32")
	want := map[policy.Source]int{{Prefix: one}: 9, {Prefix: one, Zone: 1}: 7, {Prefix: one, Zone: 2}: 6}
	if !maps.Equal(got, want) || c.Zoned != 13 || c.Distinct != 3 {
		t.Errorf("sources %v, %d in zones, %d distinct; want %v", got, c.Zoned, c.Distinct, want)
	}
	if c, err = table.Scan(t.Context(), ScanOptions{}); err != nil || len(c.Sources) != 3 {
		t.Errorf("the second scan finds %v (%v)", c.Sources, err)
	}
}
