package conntrack

import (
	"fmt"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"ctguard/agent/conntrack/conntrackfill"
)

func TestRetime(t *testing.T) {
	const long = 5000
	one := func(proto, state uint8, status uint32) flow {
		return flow{Src: addr("192.0.2.1"), Dst: addr("198.51.100.1"), Proto: proto, SrcPort: 4000, DstPort: 80,
			State: state, Status: status, Timeout: long}
	}
	unacked := one(6, tcpEstablished, busy)
	unacked.Unacked = true
	six := one(58, 0, 0)
	six.Src, six.Dst = addr("2001:db8::1"), addr("2001:db8::2")
	short := one(6, tcpEstablished, busy)
	short.Timeout = 5
	zoned := one(6, tcpEstablished, busy)
	zoned.Zone = 7
	const sr = conntrackfill.SeenReply
	table := openTable(t)
	for _, c := range []struct {
		name    string
		flow    flow
		setting string
	}{
		{"syn_sent", one(6, tcpSynSent, 0), "nf_conntrack_tcp_timeout_syn_sent"},
		{"syn_recv", one(6, tcpSynRecv, sr), "nf_conntrack_tcp_timeout_syn_recv"},
		{"established", one(6, tcpEstablished, busy), "nf_conntrack_tcp_timeout_established"},
		{"established in a zone", zoned, "nf_conntrack_tcp_timeout_established"},
		{"established without an answer", one(6, tcpEstablished, 0), "nf_conntrack_tcp_timeout_unacknowledged"},
		{"established, data unacknowledged", unacked, "nf_conntrack_tcp_timeout_unacknowledged"},
		{"fin_wait", one(6, tcpFinWait, busy), "nf_conntrack_tcp_timeout_fin_wait"},
		{"close_wait", one(6, tcpCloseWait, busy), "nf_conntrack_tcp_timeout_close_wait"},
		{"last_ack", one(6, tcpLastAck, busy), "nf_conntrack_tcp_timeout_last_ack"},
		{"time_wait", one(6, tcpTimeWait, busy), "nf_conntrack_tcp_timeout_time_wait"},
		{"close", one(6, tcpClose, busy), "nf_conntrack_tcp_timeout_close"},
		{"udp", one(17, 0, 0), "nf_conntrack_udp_timeout"},
		{"udp answered", one(17, 0, sr), "nf_conntrack_udp_timeout"},
		{"udp stream", one(17, 0, busy), "nf_conntrack_udp_timeout_stream"},
		{"icmp", one(1, 0, 0), "nf_conntrack_icmp_timeout"},
		{"icmpv6", six, "nf_conntrack_icmpv6_timeout"},
		{"gre", one(47, 0, 0), "nf_conntrack_gre_timeout"},
		{"gre stream", one(47, 0, busy), "nf_conntrack_gre_timeout_stream"},
		{"sctp established", one(132, 4, busy), "nf_conntrack_sctp_timeout_established"},
		{"sctp closed", one(132, 1, 0), "nf_conntrack_sctp_timeout_closed"},
		{"generic", one(50, 0, 0), "nf_conntrack_generic_timeout"},
		{"already shorter", short, ""},
	} {
		func() { // not a subtest: those have threads, and so namespaces, of their own
			if _, err := table.Remove(t.Context(), EntryFilter{}, nil, false, nil); err != nil {
				t.Fatal(err)
			}
			fill(t, c.flow)
			timeouts := everyTimeout()
			want := c.flow.Timeout
			if c.setting != "" {
				timeouts[c.setting] = 77
				want = 77
			}
			n, err := table.Retime(t.Context(), Retiming{Timeouts: timeouts})
			if err != nil {
				t.Fatal(err)
			}
			if got := dump(t, table)[0].timeout; got > want || got < want-2 {
				t.Errorf("%s: changed %d, %d seconds left, want %d", c.name, n, got, want)
			}
			if (n == 1) != (c.setting != "") {
				t.Errorf("%s: changed %d", c.name, n)
			}
		}()
	}
}

// everyTimeout is long for all settings, so that a test shows which one is asked.
func everyTimeout() map[string]int {
	all := make(map[string]int)
	for prefix, names := range map[string][]string{tcpTimeout: tcpStateNames[:], sctpTimeout: sctpStateNames[:],
		dccpTimeout: dccpStateNames[:]} {
		for _, n := range names {
			if n != "" {
				all[prefix+n] = 4000
			}
		}
	}
	for _, n := range []string{"tcp_timeout_unacknowledged", "udp_timeout", "udp_timeout_stream", "gre_timeout",
		"gre_timeout_stream", "icmp_timeout", "icmpv6_timeout", "generic_timeout"} {
		all["nf_conntrack_"+n] = 6000
	}
	for n := range all {
		all[n] = 6000
	}
	return all
}

func TestRetimeSpares(t *testing.T) {
	table := openTable(t)
	fill(t, tcp("192.0.2.1", 10, tcpEstablished, busy, 5000)...)
	fill(t, tcp("192.0.2.2", 10, tcpEstablished, busy, 5000)...)
	fixed := tcp("192.0.2.3", 1, tcpEstablished, busy|conntrackfill.FixedTimeout, 5000)
	fill(t, fixed...)
	fill(t, flow{Src: addr("192.0.2.4"), Dst: addr("192.0.2.5"), Proto: unix.IPPROTO_UDP, SrcPort: 1, DstPort: 2,
		Timeout: 5000})
	n, err := table.Retime(t.Context(), Retiming{
		Timeouts: map[string]int{"nf_conntrack_tcp_timeout_established": 60},
		Spare:    []netip.Prefix{prefix("192.0.2.2/32")},
	})
	if err != nil || n != 10 {
		t.Errorf("changed %d, %v; want 10", n, err)
	}
	for _, e := range dump(t, table) {
		if wants := e.orig.src.netip() == addr("192.0.2.1"); wants != (e.timeout <= 60) {
			t.Errorf("%v has %d seconds left", e.orig.src.netip(), e.timeout)
		}
	}
}

// An entry that was silent still shows it after its timeout was shortened, and keeps at least half of the new one.
func TestRetimeKeepsSilence(t *testing.T) {
	const setting = "nf_conntrack_tcp_timeout_established"
	for left, want := range map[uint32]uint32{432000: 7440, 431000: 6440, 9000: 3720, 4000: 4000} {
		t.Run(fmt.Sprint(left), func(t *testing.T) {
			table := openTable(t)
			fill(t, flow{Src: addr("192.0.2.1"), Dst: addr("198.51.100.1"), Proto: 6, SrcPort: 4000, DstPort: 80,
				State: tcpEstablished, Status: busy, Timeout: left})
			r := Retiming{Timeouts: map[string]int{setting: 7440}, Before: map[string]int{setting: 432000}}
			if _, err := table.Retime(t.Context(), r); err != nil {
				t.Fatal(err)
			}
			if got := dump(t, table)[0].timeout; got > want || got < want-2 {
				t.Errorf("%d of 432000 seconds left became %d, want %d", left, got, want)
			}
		})
	}
}
