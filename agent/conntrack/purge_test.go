package conntrack

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"

	"ctguard/agent/conntrack/conntrackfill"
	"ctguard/agent/conntrack/conntracktest"
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
			n, err := table.Purge(t.Context(), policy.Purge{Class: c.class, Local: c.local != ""},
				Parties{Own: local, Spared: spare}, nil)
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
		if n, err := table.Purge(t.Context(), dns, Parties{},
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
	if n, err := table.Purge(t.Context(), dns, Parties{}, rate.NewLimiter(0, 0)); err != nil || n != 0 {
		t.Errorf("without any budget: deleted %d, %v", n, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	context.AfterFunc(waitFor(func() bool { n, _ := table.Count(); return n <= 200 }), cancel)
	if n, err := table.Purge(ctx, dns, Parties{}, rate.NewLimiter(1e-9, 100)); err == nil || n != 100 {
		t.Errorf("with a budget of 100: deleted %d, %v", n, err)
	}
	if n, err := table.Purge(t.Context(), dns, Parties{}, rate.NewLimiter(1e6, 64)); err != nil || n != 200 {
		t.Errorf("with a large budget: deleted %d, %v", n, err)
	}
}

func TestPurgeEndsWithContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	table := openTable(t)
	fill(t, flood(10, 53)...)
	if n, err := table.Purge(ctx, dns, Parties{}, nil); !errors.Is(err,
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
		if n, err := table.Purge(b.Context(), dns, Parties{},
			nil); err != nil || n != len(litter) {
			b.Fatalf("deleted %d, %v", n, err)
		}
	}
}

// Of handshakes a purge takes those that were there the last time as well, and of nothing else: who has just begun has
// that long to finish, and what was finished is a conversation.
func TestPurgeUnfinished(t *testing.T) {
	table := openTable(t)
	const age = 5 * time.Second
	all := policy.Purge{Class: policy.FlowClass{Protocol: protoTCP}, Handshakes: true, Unfinished: age}
	purge := func() int {
		n, err := table.Purge(t.Context(), all, Parties{Spared: []netip.Prefix{prefix("192.0.2.9/32")}}, nil)
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
	cookies := tcp("192.0.2.4", 10, tcpSynRecv, conntrackfill.SeenReply, 60)
	for i := range cookies {
		cookies[i].Proxied = true
	}
	fill(t, cookies...)
	if n := purge(); n != 0 {
		t.Errorf("the first purge took %d that may have begun just now", n)
	}
	if n := purge(); n != 0 {
		t.Errorf("a purge that came too soon took %d", n)
	}
	wait(table, all)
	fill(t, tcp("192.0.2.2", 20, tcpSynRecv, conntrackfill.SeenReply, 60)...)
	if n := purge(); n < 330 || n > 335 { // one of them may share its bit
		t.Errorf("the second purge took %d, want the 330 from before", n)
	}
	left := make(map[netip.Addr]int)
	for _, e := range dump(t, table) {
		left[e.orig.src.netip()]++
	}
	for from, n := range map[string]int{"192.0.2.1": 0, "2001:db8::1": 0, "192.0.2.9": 10, "192.0.2.3": 10,
		"192.0.2.4": 10} {
		if got := left[addr(from)]; got != n {
			t.Errorf("%d of %s are left, want %d", got, from, n)
		}
	}
	if n := left[addr("192.0.2.2")]; n < 15 {
		t.Errorf("of 20 that had just begun %d are left", n)
	}
}

// wait has as much time gone by since the newest look as a purge gives to what is unfinished.
func wait(table *Table, p policy.Purge) {
	look := table.looks.at(p)
	look.at = look.at.Add(-p.Unfinished)
}

// Of what passes, a purge takes what was answered and the pass before saw as well: questions, and handshakes that wait
// for the last ACK; where that is asked for, what was translated to an inside host, too.
func TestPurgeForwarded(t *testing.T) {
	outside, inside, client := addr("198.51.100.1"), addr("192.0.2.10"), addr("203.0.113.1")
	of := Parties{Own: []netip.Prefix{netip.PrefixFrom(outside, 32)}, Inside: []netip.Prefix{prefix("192.0.2.128/25")},
		Spared: []netip.Prefix{prefix("203.0.113.9/32")}}
	const answered = conntrackfill.SeenReply
	flows := []flow{
		{Src: client, Dst: inside, Status: answered},
		{Src: client, Dst: outside, NewDst: inside, Status: answered},
		{Src: client, Dst: inside, Proto: protoTCP, State: tcpSynRecv, Status: answered},
		{Src: client, Dst: outside, Proto: protoTCP, State: tcpSynRecv, Status: answered}, // with this host itself
		// From here on all stay.
		{Src: client, Dst: outside, NewDst: inside},
		{Src: client, Dst: outside, NewDst: inside, Status: busy},
		{Src: client, Dst: outside, NewDst: inside, Status: answered | conntrackfill.FixedTimeout},
		{Src: client, Dst: outside, NewDst: inside, NewSrc: addr("192.0.2.1"), Status: answered},
		{Src: client, Dst: inside, NewSrc: addr("192.0.2.1"), Status: answered},
		{Src: client, Dst: outside, Status: answered},
		{Src: outside, Dst: inside, Status: answered},
		{Src: addr("192.0.2.129"), Dst: client, Status: answered},
		{Src: client, Dst: inside, Status: answered, DstPort: 54},
		{Src: addr("203.0.113.9"), Dst: inside, Status: answered},
		{Src: client, Dst: inside, Proto: protoTCP, State: tcpSynSent},
		{Src: client, Dst: inside, Proto: protoTCP, State: tcpEstablished, Status: busy},
		{Src: client, Dst: outside, NewDst: inside, Proto: protoTCP, State: tcpSynRecv, Status: answered},
		{Src: outside, Dst: inside, Proto: protoTCP, State: tcpSynRecv, Status: answered},
	}
	for i := range flows {
		f := &flows[i]
		f.SrcPort, f.Timeout, f.Proto = uint16(100+i), 60, max(f.Proto, protoTCP)
		if f.State == 0 {
			f.Proto = protoUDP
		}
		if f.DstPort == 0 {
			f.DstPort = 53
		}
	}
	all := policy.FlowClass{Protocol: protoTCP}
	for _, c := range []struct {
		purge policy.Purge
		taken []int
	}{
		{policy.Purge{Class: dns.Class, Passing: true}, []int{0}},
		{policy.Purge{Class: dns.Class, Passing: true, To: inside}, []int{0}},
		{policy.Purge{Class: dns.Class, Passing: true, To: inside.Next()}, nil},
		{policy.Purge{Class: dns.Class, Translated: true}, []int{1}},
		{policy.Purge{Class: dns.Class, Passing: true, Translated: true}, []int{0, 1}},
		{policy.Purge{Class: all, Passing: true, Handshakes: true}, []int{2}},
		{policy.Purge{Class: all, Passing: true, Local: true, Handshakes: true}, []int{2, 3}},
	} {
		table := openTable(t)
		fill(t, flows...)
		c.purge.Unfinished = 5 * time.Second
		for pass, want := range []int{0, len(c.taken), 0} {
			n, err := table.Purge(t.Context(), c.purge, of, nil)
			if err != nil || n != want {
				t.Errorf("%+v: pass %d took %d, %v; want %d", c.purge, pass, n, err, want)
			}
			wait(table, c.purge)
		}
		if left := kept(t, table, flows); !slices.Equal(left, without(len(flows), c.taken)) {
			t.Errorf("%+v: kept %v", c.purge, left)
		}
	}
}

// Who asks while a purge passes gets the answer, also from a host that lets nothing out but answers; once it is there
// the entry goes. An answer that came too late for its question's entry has one of its own, which goes as well, and
// nothing that this host asks from the same port.
func TestPurgeOnTheWire(t *testing.T) {
	table, peer := openTracking(t)
	here, there := netip.AddrPortFrom(conntracktest.Here4, 53), netip.AddrPortFrom(conntracktest.There4, 4500)
	service := listen(t, here)
	var client, other *net.UDPConn
	peer.Do(func() {
		client, other = listen(t, netip.AddrPortFrom(conntracktest.There4, 4400)), listen(t, there)
	})
	purge := func(p policy.Purge, spare ...netip.Prefix) int {
		n, err := table.Purge(t.Context(), p,
			Parties{Own: []netip.Prefix{netip.PrefixFrom(here.Addr(), 32)}, Spared: spare}, nil)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	careful, rude := dns, dns
	careful.Local, careful.Unfinished = true, 5*time.Second
	filter := []string{"nft add chain inet track filter {type filter hook output priority 1;}",
		"nft add rule inet track filter ct state new drop"}
	if err := conntracktest.Run(filter...); err != nil {
		t.Fatal(err)
	}
	asker := send(t, client, here, service)
	for pass := range 3 {
		if n := purge(careful); n != 0 {
			t.Errorf("pass %d took %d questions that are being answered", pass, n)
		}
	}
	send(t, service, asker, client)
	if n := purge(careful); n != 1 {
		t.Errorf("took %d questions that were answered, want 1", n)
	}

	if err := conntracktest.Run("nft delete chain inet track filter"); err != nil {
		t.Fatal(err)
	}
	send(t, client, here, service)
	if n := purge(rude); n != 1 {
		t.Errorf("took %d questions at once, want 1", n)
	}
	send(t, service, asker, client)                         // this answer makes an entry,
	send(t, other, send(t, service, there, other), service) // and this host asks somebody, who answers
	for _, c := range []struct {
		spare []netip.Prefix
		want  int
	}{{nil, 0}, {[]netip.Prefix{netip.PrefixFrom(asker.Addr(), 32)}, 0}, {nil, 0}, {nil, 1}} {
		if n := purge(careful, c.spare...); n != c.want {
			t.Errorf("sparing %v it took %d, want %d", c.spare, n, c.want)
		}
		wait(table, careful)
	}
	if left := dump(t, table); len(left) != 1 || left[0].orig.dstPort != there.Port() {
		t.Errorf("left: %v", left)
	}
}

// listen opens a UDP socket.
func listen(t *testing.T, at netip.AddrPort) *net.UDPConn {
	t.Helper()
	conn, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(at))
	if err != nil {
		t.Error(err)
		return nil
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// send has something go from one socket to another, and returns from where it came.
func send(t *testing.T, from *net.UDPConn, to netip.AddrPort, there *net.UDPConn) netip.AddrPort {
	t.Helper()
	if _, err := from.WriteToUDPAddrPort([]byte("?"), to); err != nil {
		t.Fatal(err)
	}
	_ = there.SetReadDeadline(time.Now().Add(5 * time.Second))
	_, source, err := there.ReadFromUDPAddrPort(make([]byte, 16))
	if err != nil {
		t.Fatal(err)
	}
	return source
}

// Who came back with a cookie keeps the entry that synproxy made, however long the service takes to answer that.
func TestPurgeLeavesCookies(t *testing.T) {
	conntracktest.Privileged(t, "nft")
	table, peer := openTracking(t)
	if err := os.WriteFile(sysctlRoot+"nf_conntrack_tcp_loose", []byte("0"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := conntracktest.Run("nft add chain inet track raw {type filter hook prerouting priority -300;}",
		"nft add rule inet track raw iif "+conntracktest.HereLink+" tcp dport 80 tcp flags syn notrack",
		"nft add chain inet track in {type filter hook input priority 0;}",
		"nft add rule inet track in iif lo tcp dport 80 drop", // the service takes for ever
		"nft add rule inet track in tcp dport 80 ct state invalid,untracked synproxy mss 1460 wscale 7 timestamp sack-perm",
	); err != nil {
		t.Fatal(err)
	}
	peer.Do(func() { connect(t, "tcp", nil, &net.TCPAddr{IP: conntracktest.Here4.AsSlice(), Port: 80}) })
	handshake := func() *entry {
		for _, e := range dump(t, table) {
			if e.orig.dstPort == 80 {
				return &e
			}
		}
		return nil
	}
	for began := time.Now(); handshake() == nil; time.Sleep(10 * time.Millisecond) {
		if time.Since(began) > 5*time.Second {
			t.Fatal("synproxy has opened nothing")
		}
	}
	if e := handshake(); !e.proxied || !e.handshake() {
		t.Fatalf("proxied %t, state %d", e.proxied, e.state)
	}
	all := policy.Purge{Class: policy.FlowClass{Protocol: protoTCP, Port: 80}}
	if n, err := table.Purge(t.Context(), all, Parties{}, nil); err != nil || n != 0 || handshake() == nil {
		t.Errorf("purged %d, %v", n, err)
	}
}
