package conntrack

import (
	"fmt"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"ctguard/agent/conntrack/conntrackfill"
	"ctguard/agent/conntrack/conntracktest"
	"ctguard/policy"
)

// What is over goes, whoever owns it and whether it is translated or not; what may still speak stays.
func TestRetire(t *testing.T) {
	const sr = conntrackfill.SeenReply
	inside, own, outside := addr("192.0.2.10"), addr("192.0.2.1"), addr("198.51.100.1")
	service := []policy.Selector{{Protocol: policy.UDP, Port: 5000}}
	tcp := func(state uint8, status uint32, left uint32) flow {
		return flow{Src: inside, Dst: outside, Proto: protoTCP, DstPort: 80, State: state, Status: status, Timeout: left}
	}
	udp := func(dst netip.Addr, port uint16, status, left uint32) flow {
		return flow{Src: inside, Dst: dst, Proto: protoUDP, DstPort: port, Status: status, Timeout: left}
	}
	translated := tcp(tcpTimeWait, busy, 100)
	translated.NewSrc = own
	zoned := tcp(tcpTimeWait, busy, 100)
	zoned.Zone = 7
	fixed := tcp(tcpTimeWait, busy|conntrackfill.FixedTimeout, 100)
	question := tcp(tcpSynSent, 0, 100)
	question.Src = own
	forwarded := func(port uint16, left uint32) flow {
		return flow{Src: outside, Dst: own, Proto: protoTCP, DstPort: port, State: tcpSynRecv, Status: sr, Timeout: left,
			NewDst: inside}
	}
	six := flow{Src: addr("2001:db8::1"), Dst: addr("2001:db8:1::1"), Proto: protoICMPv6, Status: sr, Timeout: 20}
	for _, c := range []struct {
		name string
		flow flow
		goes bool
	}{
		{"time_wait", tcp(tcpTimeWait, busy, 100), true},
		{"time_wait, translated", translated, true},
		{"time_wait in a zone", zoned, true},
		{"time_wait of a moment ago", tcp(tcpTimeWait, busy, 120), false},
		{"time_wait with a lifetime of its own", fixed, false},
		{"set under a longer timeout", tcp(tcpTimeWait, busy, 500), false},
		{"closed by a reset", tcp(tcpClose, busy, 5), true},
		{"established and idle", tcp(tcpEstablished, busy, 1000), false},
		{"half closed", tcp(tcpCloseWait, busy, 10), false},
		{"its last acknowledgement is due", tcp(tcpLastAck, busy, 10), false},
		{"a handshake under way", tcp(tcpSynRecv, sr, 10), false},
		{"a handshake that synproxy has taken over", forwarded(443, 57), true},
		{"a handshake that began a moment ago", forwarded(443, 60), false},
		{"a handshake with another service", forwarded(80, 10), false},
		{"somebody's SYN that nobody answers", tcp(tcpSynSent, 0, 100), false},
		{"the host's own SYN that nobody answers", question, true},
		{"a name asked for and answered", udp(outside, 53, sr, 20), true},
		{"a tunnel on the port of names", udp(outside, 53, busy, 60), false},
		{"a name asked for a moment ago", udp(outside, 53, sr, 30), false},
		{"a name asked for in vain", udp(outside, 53, 0, 10), false},
		{"a phone behind a gateway", udp(outside, 5060, sr, 6), false},
		{"a tunnel behind a gateway", udp(outside, 51820, busy, 96), false},
		{"this host's service", udp(own, 5000, sr, 20), true},
		{"this host's service, a conversation", udp(own, 5000, busy, 60), false},
		{"another of this host's services", udp(own, 5001, sr, 20), false},
		{"echo", flow{Src: inside, Dst: outside, Proto: protoICMP, Status: sr, Timeout: 20}, true},
		{"echo without an answer", flow{Src: inside, Dst: outside, Proto: protoICMP, Timeout: 20}, false},
		{"echo over IPv6", six, true},
		{"another protocol", flow{Src: inside, Dst: outside, Proto: 50, Status: busy, Timeout: 20}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			table := openTable(t)
			c.flow.SrcPort = 4000
			fill(t, c.flow)
			var progress atomic.Uint64
			n, err := table.Retire(t.Context(), Retirement{
				Timeouts: map[string]int{
					"nf_conntrack_tcp_timeout_time_wait": 120, "nf_conntrack_tcp_timeout_close": 10,
					"nf_conntrack_tcp_timeout_syn_sent": 120, "nf_conntrack_tcp_timeout_syn_recv": 60,
					"nf_conntrack_tcp_timeout_established": 432000, "nf_conntrack_tcp_timeout_close_wait": 60,
					"nf_conntrack_tcp_timeout_last_ack": 30, "nf_conntrack_udp_timeout": 30, "nf_conntrack_udp_timeout_stream": 120,
					"nf_conntrack_icmp_timeout": 30, "nf_conntrack_icmpv6_timeout": 30, "nf_conntrack_generic_timeout": 600,
				},
				Silent: 2 * time.Second, Services: service, Dead: true, Progress: &progress,
				Proxied: []netip.AddrPort{netip.AddrPortFrom(own, 443)},
				Local:   func(a netip.Addr) bool { return a == own },
			})
			if err != nil {
				t.Fatal(err)
			}
			left := dump(t, table)
			goes := len(left) == 1 && left[0].timeout <= lastSecond
			if goes != c.goes || (n == 1) != c.goes || progress.Load() != uint64(n) {
				t.Errorf("retired %d (progress %d), left %+v; goes should be %t", n, progress.Load(), left, c.goes)
			}
		})
	}
}

// What is over runs out in a moment, so many entries at one go; a connection that begins with the same ports meanwhile
// lives, though it looks like the entry that was to go.
func TestRetireSparesWhoBeginsAgain(t *testing.T) {
	table := openTable(t)
	over := tcp("192.0.2.1", 3, tcpTimeWait, busy, 100)
	fill(t, over...)
	r := Retirement{Timeouts: map[string]int{"nf_conntrack_tcp_timeout_time_wait": 120}, Silent: time.Second, Most: 2}
	for _, want := range []int{2, 1, 0} {
		if n, err := table.Retire(t.Context(), r); err != nil || n != want {
			t.Fatalf("%d retired (%v), want %d", n, err, want)
		}
	}
	again := over[1]
	if err := conntracktest.Run(fmt.Sprintf("conntrack -U -p tcp -s %s -d %s --orig-port-src %d --orig-port-dst %d -t 300",
		again.Src, again.Dst, again.SrcPort, again.DstPort)); err != nil {
		t.Fatal(err) // what its next packet does
	}
	deadline := time.Now().Add(10 * time.Second)
	for left := dump(t, table); len(left) != 1; left = dump(t, table) {
		if time.Now().After(deadline) {
			t.Fatalf("left: %+v", left)
		}
		time.Sleep(50 * time.Millisecond)
	}
	if left := dump(t, table); left[0].orig.srcPort != again.SrcPort {
		t.Errorf("left: %+v", left)
	}
}

// What a helper follows or announced, and what hardware forwards, never retires: its timeout tells nothing.
func TestRetireKeeps(t *testing.T) {
	f := newFinished(Retirement{Timeouts: map[string]int{"nf_conntrack_tcp_timeout_time_wait": 120}, Silent: time.Second})
	over := entry{orig: tuple{proto: protoTCP}, protoInfo: protoInfoTCP, state: tcpTimeWait, status: busy, timeout: 60}
	if !f.over(&over) {
		t.Fatal("an entry in TIME_WAIT for a minute should be over")
	}
	for name, change := range map[string]func(*entry){
		"a helper's":          func(e *entry) { e.helped = true },
		"announced":           func(e *entry) { e.status |= statusExpected },
		"offloaded":           func(e *entry) { e.status |= statusOffload },
		"offloaded to a card": func(e *entry) { e.status |= statusHWOffload },
		"without a timeout":   func(e *entry) { e.timeout = noTimeout },
	} {
		e := over
		change(&e)
		if f.over(&e) {
			t.Errorf("%s retires", name)
		}
	}
}

// A dump leaves out by status what it is asked to, on kernels that can; those that can't send everything.
func TestWalkByStatus(t *testing.T) {
	table := openTable(t)
	for i, status := range []uint32{0, conntrackfill.SeenReply, busy} {
		fill(t, flow{Src: addr("192.0.2.1"), Dst: addr("198.51.100.1"), Proto: protoUDP,
			SrcPort: uint16(1 + i), DstPort: 9, Status: status, Timeout: 60})
	}
	for _, c := range []struct {
		part part
		want []uint16
	}{
		{part{has: statusSeenReply}, []uint16{2, 3}},
		{part{lacks: statusSeenReply}, []uint16{1}},
		{part{has: statusSeenReply, lacks: statusAssured}, []uint16{2}},
	} {
		var got []uint16
		_, err := table.walk(t.Context(), c.part, 0, func(e *entry) bool {
			got = append(got, e.orig.srcPort)
			return true
		})
		if err != nil {
			t.Fatal(err)
		}
		slices.Sort(got)
		if !slices.Equal(got, c.want) {
			t.Errorf("%+v: dumped %v, want %v", c.part, got, c.want)
		}
	}
}
