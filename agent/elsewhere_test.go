package agent

import (
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"ctguard/agent/conntrack"
	"ctguard/agent/conntrack/conntrackfill"
	"ctguard/agent/conntrack/conntracktest"
	"ctguard/policy"
)

// Of a service's conversations those count that go to another inside host, or another port of it; what is over, what
// nobody answers and what goes to other services does not.
func TestElsewhere(t *testing.T) {
	conntracktest.Own(t)
	outside, other := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.9")
	inside, old := netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("10.0.0.3")
	const established, timeWait = 3, 7 // enum tcp_conntrack
	port := uint16(1000)
	fill := func(n int, f conntrackfill.Flow) {
		f.Proto, f.Src, f.Timeout = unix.IPPROTO_TCP, netip.MustParseAddr("198.51.100.7"), 600
		if !f.Dst.IsValid() {
			f.Dst = outside
		}
		if f.State == 0 {
			f.State = established
		}
		for range n {
			port++
			f.SrcPort = port
			if made, err := conntrackfill.Fill(func(yield func(conntrackfill.Flow) bool) { yield(f) }); err != nil || made != 1 {
				t.Fatal(made, err)
			}
		}
	}
	const answered = conntrackfill.SeenReply | conntrackfill.Assured
	fill(5, conntrackfill.Flow{DstPort: 80, NewDst: inside, Status: answered})
	fill(3, conntrackfill.Flow{DstPort: 80, NewDst: old, Status: answered})
	fill(2, conntrackfill.Flow{DstPort: 80, NewDst: old, Status: answered, State: timeWait})
	fill(2, conntrackfill.Flow{DstPort: 80, NewDst: old})
	fill(2, conntrackfill.Flow{DstPort: 443, NewDst: old, Status: answered})
	fill(2, conntrackfill.Flow{Dst: other, DstPort: 80, NewDst: old, Status: answered})
	fill(2, conntrackfill.Flow{DstPort: 80, Status: answered}) // this host's own
	table, err := conntrack.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer table.Close()
	web := policy.Selector{Protocol: policy.TCP, Port: 80, Local: netip.PrefixFrom(outside, 32), Uplink: "wan0",
		Inside: netip.AddrPortFrom(inside, 80)}
	for _, c := range []struct {
		port uint16
		want int
	}{{80, 3}, {8080, 8}} {
		web.Inside = netip.AddrPortFrom(inside, c.port)
		secure := web
		secure.Port = 443
		got, err := elsewhere(table)([]policy.Selector{web, secure})
		if err != nil || got[web] != c.want || got[secure] != 2 {
			t.Errorf("to port %d: %v go elsewhere (%v), want %d, and 2 of the other service", c.port, got, err, c.want)
		}
	}
}
