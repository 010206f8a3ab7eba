package nft

import (
	"maps"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"ctguard/policy"
)

// work reads the counters until nothing came while they were read: they are read one after the other, and the last
// acknowledgement of a connection is late.
func work(t testing.TB, table *Table) policy.Work {
	t.Helper()
	for before, end := (policy.Work{}), time.Now().Add(patience); ; {
		w, err := table.Work()
		if err != nil {
			t.Fatal(err)
		}
		if maps.Equal(w.Selectors, before.Selectors) && maps.Equal(w.Proxied.Services, before.Proxied.Services) {
			return w
		}
		if before = w; time.Now().After(end) {
			t.Fatalf("counters never stand still: %+v", w.Selectors)
		}
	}
}

func limits(list ...policy.Limit) policy.Posture { return policy.Posture{Limits: list} }

func block(p string) policy.Limit { return policy.Limit{Prefix: prefix(p), Kind: policy.Block} }

func slow(p string) policy.Limit { return policy.Limit{Prefix: prefix(p)} }

// TestBlock cuts off a source with a connection open. Others, and allowed ones, go on.
func TestBlock(t *testing.T) {
	l := newLink(t)
	l.serve(80)
	open2, open6, other := l.mustDial("tcp", client2, 80), l.mustDial("tcp", client6, 80), l.mustDial("tcp", client3, 80)
	table := open(t)
	apply(t, table, Desired{
		Posture: limits(block(client2+"/32"), block(client4+"/32"), block("2001:db8::/64")),
		Allow:   []netip.Prefix{prefix("192.0.2.4/30")},
	})
	for _, c := range []net.Conn{open2, open6} {
		if err := echoed(c, refuses); err == nil {
			t.Errorf("open connection from %v goes on", c.LocalAddr())
		}
	}
	run(t, "conntrack -F")
	for _, network := range []string{"tcp", "udp"} {
		for _, from := range []string{client2, client6} {
			c, err := l.dial(network, from, 80, refuses)
			if err == nil {
				err = echoed(c, refuses)
			}
			if err == nil {
				t.Errorf("%s from %s gets through", network, from)
			}
		}
	}
	wantEntries(t, client2, 0)
	wantEntries(t, client6, 0)
	mustEcho(t, other)
	for _, network := range []string{"tcp", "udp"} {
		mustEcho(t, l.mustDial(network, client3, 80))
		mustEcho(t, l.mustDial(network, client4, 80)) // allowed, and therefore not blocked
	}
	if w := work(t, table); w.BlockedDropped < 6 || w.LimitedDropped != 0 {
		t.Errorf("work %+v, want at least 6 blocked packets and nothing else", w)
	}
}

// TestLimitSparesOpenFlows lets a limited source open nothing at all. What it has goes on, a stream of
// datagrams that nobody answers included.
func TestLimitSparesOpenFlows(t *testing.T) {
	l := newLink(t)
	l.serve(80)
	sink, err := net.ListenPacket("udp4", hostV4+":9")
	if err != nil {
		t.Fatal(err)
	}
	defer sink.Close()
	stream, query, oneWay := l.mustDial("tcp", client2, 80), l.mustDial("udp", client2, 80), l.mustDial("udp", client2, 9)
	mustEcho(t, query)
	received := func() {
		t.Helper()
		oneWay.Write([]byte("x"))
		sink.SetReadDeadline(time.Now().Add(patience))
		if _, _, err := sink.ReadFrom(make([]byte, 8)); err != nil {
			t.Fatalf("one-way datagram: %v", err)
		}
	}
	received()

	table := open(t)
	apply(t, table, Desired{
		Posture: limits(slow(client2+"/32"), slow("192.0.2.3/32"), slow("2001:db8::/48")),
		Allow:   []netip.Prefix{prefix("192.0.2.3/32")},
	})
	for range 5 {
		mustEcho(t, stream)
		mustEcho(t, query)
		received()
	}
	if w := work(t, table); w.LimitedDropped != 0 {
		t.Errorf("work %+v, want nothing dropped of open flows", w)
	}
	wantEntries(t, client2, 3)
	for _, from := range []string{client2, client6} {
		if _, err := l.dial("tcp", from, 80, refuses); err == nil {
			t.Errorf("tcp from %s opens a connection", from)
		}
		if err := echoed(l.mustDial("udp", from, 80), refuses); err == nil {
			t.Errorf("udp from %s opens a flow", from)
		}
	}
	wantEntries(t, client2, 3)
	wantEntries(t, client6, 0)
	if w := work(t, table); w.LimitedDropped < 4 || w.BlockedDropped != 0 {
		t.Errorf("work %+v, want at least 4 limited packets and nothing else", w)
	}
	for _, from := range []string{client3, client4} { // allowed, and not limited
		mustEcho(t, l.mustDial("tcp", from, 80))
		mustEcho(t, l.mustDial("udp", from, 80))
	}
}

// TestRate lets a limited source open flows up to its burst, and the whole of a prefix no more than
// one source.
func TestRate(t *testing.T) {
	const burst, attempts = 5, 20
	for _, network := range []string{"tcp", "udp"} {
		for name, sources := range map[string][]string{
			"one source": {client2}, "prefix": {client2, client3}, "ipv6": {client6},
		} {
			t.Run(network+" "+name, func(t *testing.T) {
				l := newLink(t)
				l.serve(80)
				table := open(t)
				p := limits(slow("192.0.2.2/31"), slow("2001:db8::/56"))
				p.LimitRate, p.LimitBurst = 1, burst
				apply(t, table, Desired{Posture: p})
				began := time.Now()
				opens := func(i int, wait time.Duration) bool {
					c, err := l.dial(network, sources[i%len(sources)], 80, wait)
					return err == nil && echoed(c, wait) == nil
				}
				mustOpen := func() {
					t.Helper()
					for i := range burst {
						if !opens(i, patience) {
							t.Fatalf("flow %d of the burst of %d is limited", i+1, burst)
						}
					}
				}
				mustOpen()
				passed := burst
				for i := range attempts {
					if opens(i, 20*time.Millisecond) {
						passed++
					}
				}
				most := burst + int(time.Since(began)/time.Second) + 1 // rate and rounding
				if w := work(t, table); passed > most || w.LimitedDropped < uint64(burst+attempts-most) {
					t.Errorf("%d of %d passed, %d packets dropped; want at most %d to pass",
						passed, burst+attempts, w.LimitedDropped, most)
				}
				p.LimitBurst = 2 * burst // sources that were metered already get it too
				apply(t, table, Desired{Posture: p})
				mustOpen()
			})
		}
	}
}

// TestReject answers instead of dropping.
func TestReject(t *testing.T) {
	l := newLink(t)
	l.serve(80)
	table := open(t)
	p := limits(slow(client2+"/32"), slow("2001:db8::/64"))
	p.Reject = true
	apply(t, table, Desired{Posture: p})
	for _, from := range []string{client2, client6} {
		if _, err := l.dial("tcp", from, 80, patience); !refused(err) {
			t.Errorf("tcp from %s: %v, want refused", from, err)
		}
		if err := echoed(l.mustDial("udp", from, 80), patience); !refused(err) {
			t.Errorf("udp from %s: %v, want refused", from, err)
		}
		wantEntries(t, from, 0)
	}
	if w := work(t, table); w.LimitedDropped != 4 {
		t.Errorf("work %+v, want 4 limited packets", w)
	}
}

// TestEnd waits for the kernel to end a block by itself.
func TestEnd(t *testing.T) {
	l := newLink(t)
	l.serve(80)
	c := l.mustDial("udp", client2, 80)
	mustEcho(t, c)
	table := open(t)
	blocked := block(client2 + "/32")
	d := Desired{Posture: limits(blocked, block("198.51.100.1/32"))}
	for range 2 { // and once more after it ended
		start := time.Now()
		d.Posture.Limits[0].Until = start.Add(time.Second)
		if err := table.Apply(d, start); err != nil {
			t.Fatal(err)
		}
		if err := echoed(c, refuses); err == nil {
			t.Fatal("blocked source gets through")
		}
		for deadline := time.Now().Add(patience); echoed(c, refuses) != nil; {
			if time.Now().After(deadline) {
				t.Fatal("the block does not end")
			}
		}
		for deadline := time.Now().Add(patience); time.Since(start) < time.Second+2*settle; {
			mustEcho(t, c)
			if time.Now().After(deadline) {
				t.Fatal("time stands still")
			}
		}
	}
}

// TestMeterFull: a limited source for which the meter has no room is refused, not let through.
func TestMeterFull(t *testing.T) {
	defer func(size uint32) { meterSize = size }(meterSize)
	meterSize = 2
	l := newLink(t)
	l.serve(80)
	table := open(t)
	apply(t, table, Desired{Posture: policy.Posture{LimitRate: 100, LimitBurst: 100,
		Limits: []policy.Limit{slow(client2 + "/32"), slow(client3 + "/32"), slow(client4 + "/32")}}})
	mustEcho(t, l.mustDial("tcp", client2, 80))
	mustEcho(t, l.mustDial("udp", client3, 80))
	if _, err := l.dial("tcp", client4, 80, refuses); err == nil {
		t.Error("the third source of a meter for two opens a connection")
	}
	if w := work(t, table); w.LimitedDropped == 0 {
		t.Errorf("work %+v, want what was refused to be counted", w)
	}
}

// TestLimitOfClasses limits a source to a class and in echo requests: whatever else it opens goes on, and new flows of
// that class to who answered it, too.
func TestLimitOfClasses(t *testing.T) {
	l := newLink(t)
	l.serve(80)
	l.serve(81)
	for from, peer := range map[string]string{client2: hostV4, client6: hostV6} {
		source, proto := netip.MustParseAddr(from), uint8(1)
		if source.Is6() {
			proto = 58
		}
		limit := policy.Limit{Prefix: netip.PrefixFrom(source, source.BitLen()), Until: time.Now().Add(time.Minute),
			Flows: []policy.FlowClass{{Protocol: proto}, {Protocol: 6, Port: 80}, {Protocol: 17, Port: 80}}}
		table := open(t)
		apply(t, table, Desired{Posture: limits(limit)})
		if err := l.ping(from, peer, refuses); err == nil {
			t.Errorf("%s: an echo request gets through", from)
		}
		for _, network := range []string{"tcp", "udp"} {
			if c, err := l.dial(network, from, 80, refuses); err == nil && echoed(c, refuses) == nil {
				t.Errorf("%s from %s to port 80 opens a flow", network, from)
			}
			mustEcho(t, l.mustDial(network, from, 81))
		}
		if w := work(t, table); w.LimitedDropped < 3 {
			t.Errorf("%s: work %+v, want at least 3 packets limited", from, w)
		}
		limit.Peers = []netip.Addr{netip.MustParseAddr(peer)}
		apply(t, table, Desired{Posture: limits(limit)})
		mustEcho(t, l.mustDial("tcp", from, 80))
		mustEcho(t, l.mustDial("udp", from, 80))
		if err := l.ping(from, peer, patience); err != nil {
			t.Errorf("%s: no answer of a peer: %v", from, err)
		}
		limit.Flows = nil // all of them
		apply(t, table, Desired{Posture: limits(limit)})
		mustEcho(t, l.mustDial("tcp", from, 80))
		if ok, err := table.Intact(); err != nil || !ok {
			t.Errorf("intact is %v (%v)", ok, err)
		}
		limit.Peers = nil
		apply(t, table, Desired{Posture: limits(limit)})
		if c, err := l.dial("tcp", from, 81, refuses); err == nil {
			t.Errorf("tcp from %s opens a flow to %s, though all of it is limited", from, c.RemoteAddr())
		}
		table.Close()
	}
}

// Who is limited in all but TCP opens connections as ever, and no flows of anything else.
func TestLimitOfAllButTCP(t *testing.T) {
	l := newLink(t)
	l.serve(80)
	for from, peer := range map[string]string{client2: hostV4, client6: hostV6} {
		source := netip.MustParseAddr(from)
		limit := policy.Limit{Prefix: netip.PrefixFrom(source, source.BitLen()), ButTCP: true,
			Until: time.Now().Add(time.Minute)}
		table := open(t)
		apply(t, table, Desired{Posture: limits(limit)})
		mustEcho(t, l.mustDial("tcp", from, 80))
		if err := l.ping(from, peer, refuses); err == nil {
			t.Errorf("%s: an echo request gets through", from)
		}
		if c, err := l.dial("udp", from, 80, refuses); err == nil && echoed(c, refuses) == nil {
			t.Errorf("udp from %s opens a flow", from)
		}
		if w := work(t, table); w.LimitedDropped < 2 {
			t.Errorf("%s: work %+v, want at least 2 packets limited", from, w)
		}
		if ok, err := table.Intact(); err != nil || !ok {
			t.Errorf("intact is %v (%v)", ok, err)
		}
		limit.ButTCP = false
		apply(t, table, Desired{Posture: limits(limit)})
		if c, err := l.dial("tcp", from, 80, refuses); err == nil {
			t.Errorf("tcp from %s opens a flow to %s, though all of it is limited", from, c.RemoteAddr())
		}
		table.Close()
	}
}

// byPort puts two services into zones of their own, so that one client is two sources.
const byPort = `table inet tenants {
	chain in {
		type filter hook prerouting priority raw
		meta l4proto { tcp, udp } th dport 80 ct zone set 5
		meta l4proto { tcp, udp } th dport 81 ct zone set 6
	}
	chain out {
		type filter hook output priority raw
		meta l4proto { tcp, udp } th sport 80 ct zone set 5
		meta l4proto { tcp, udp } th sport 81 ct zone set 6
	}
}
`

// A limit of one zone is none in another, nor in the default one, and open flows go on.
func TestLimitInZone(t *testing.T) {
	l := newLink(t)
	feed(t, byPort)
	ports := map[uint16]int{5: 80, 6: 81, 0: 82}
	for _, port := range ports {
		l.serve(port)
	}
	stream := l.mustDial("tcp", client2, 80)
	table := open(t)
	for _, reject := range []bool{false, true} {
		for limited := range ports {
			one := []policy.Limit{
				{Prefix: prefix(client2 + "/32"), Zone: limited, Zoned: true},
				{Prefix: prefix("2001:db8::/64"), Zone: limited, Zoned: true},
			}
			apply(t, table, Desired{Posture: policy.Posture{Limits: one, Reject: reject}})
			before := work(t, table).LimitedDropped
			for zone, port := range ports {
				for _, from := range []string{client2, client6} {
					if _, err := l.dial("tcp", from, port, refuses); (err == nil) == (zone == limited) {
						t.Errorf("limited in zone %d: tcp from %s in zone %d: %v", limited, from, zone, err)
					}
					if err := echoed(l.mustDial("udp", from, port), refuses); (err == nil) == (zone == limited) {
						t.Errorf("limited in zone %d: udp from %s in zone %d: %v", limited, from, zone, err)
					}
				}
				mustEcho(t, l.mustDial("tcp", client3, port))
			}
			mustEcho(t, stream)
			if dropped := work(t, table).LimitedDropped - before; dropped < 4 {
				t.Errorf("limited in zone %d: %d packets dropped", limited, dropped)
			}
		}
	}
}

// A zone whose limits are over keeps its sets, but not those of ever more zones.
func TestManyZones(t *testing.T) {
	inNewNetNS(t)
	table := open(t)
	for zone := range uint16(3 * mostZones) {
		apply(t, table, Desired{Posture: policy.Posture{LimitRate: 1, Limits: []policy.Limit{
			{Prefix: prefix("198.51.100.7/32"), Zone: zone, Zoned: true, Until: now.Add(time.Minute)}}}})
		if ok, err := table.Intact(); !ok || err != nil {
			t.Fatalf("zone %d: intact %v, %v", zone, ok, err)
		}
	}
	if sets := strings.Count(list(t), "limited4_zone"); sets > 3*(mostZones+1) {
		t.Errorf("sets of zones are named %d times", sets)
	}
}
