package nft

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"ctguard/policy"
)

func selector(text string) policy.Selector {
	s, err := policy.ParseSelector(text)
	if err != nil {
		panic(err)
	}
	return s
}

func untrack(selectors ...string) Desired {
	return Desired{Posture: policy.Posture{Notrack: tracked(policy.Freed, selectors...)}}
}

// ping sends an echo request from one of the client's addresses and waits so long for the reply.
func (l *link) ping(from, to string, wait time.Duration) (err error) {
	l.do(func() { err = pingWithin(from, to, wait) })
	return err
}

// pingHost sends an echo request from the client.
func (l *link) pingHost() {
	l.t.Helper()
	var err error
	l.do(func() { err = ping(client2, hostV4) })
	if err != nil {
		l.t.Fatalf("ping host: %v", err)
	}
}

// TestNotrack leaves services untracked: they work and have no entries, everything else has.
func TestNotrack(t *testing.T) {
	for _, c := range []struct {
		name      string
		selectors []string
	}{
		{"services", []string{"tcp/80", "udp/80", "echo"}},
		{"with the client's prefixes", []string{
			"tcp/80 with 192.0.2.0/30", "tcp/80 with 2001:db8::/64",
			"udp/80 with 192.0.2.2/31", "udp/80 with ::/0", "echo with 0.0.0.0/0",
		}},
		{"on the host's addresses", []string{
			"tcp/80 at 192.0.2.0/31", "tcp/80 at 2001:db8::/126",
			"udp/80 at 192.0.2.1/32", "udp/80 with ::/0 at 2001:db8::1/128", "echo at 192.0.2.1/32",
		}},
		{"by way of the interface", []string{
			"tcp/80 on host0",
			"udp/80 with 192.0.2.2/32 at 192.0.2.1/32 on host0", "udp/80 at ::/0 on host0", "echo on host0",
		}},
		{"ranges", []string{"tcp/79-80", "udp/80-81", "echo"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := newLink(t)
			l.serve(80)
			l.serve(443)
			table := open(t)
			apply(t, table, untrack(c.selectors...))
			for _, network := range []string{"tcp", "udp"} {
				mustEcho(t, l.mustDial(network, client2, 80))
				mustEcho(t, l.mustDial(network, client6, 80))
			}
			l.pingHost()
			wantEntries(t, client2, 0)
			wantEntries(t, client6, 0)
			mustEcho(t, l.mustDial("tcp", client2, 443))
			mustEcho(t, l.mustDial("udp", client6, 443))
			if err := ping(hostV4, client2); err != nil { // the host's own echo requests stay tracked
				t.Fatalf("ping client: %v", err)
			}
			wantEntries(t, client2, 1)
			wantEntries(t, client6, 1)
			wantEntries(t, hostV4, 1)
			for text, w := range work(t, table).Selectors {
				if w.Requests == 0 || w.Requests != w.Delivered || w.Replies == 0 || w.Replies != w.Sent || w.New == 0 {
					t.Errorf("%v: %+v, want all to pass", text, w)
				}
			}
		})
	}
}

// TestNotrackRemote leaves one remote prefix untracked and no other.
func TestNotrackRemote(t *testing.T) {
	l := newLink(t)
	l.serve(80)
	table := open(t)
	apply(t, table, untrack("tcp/80 with 192.0.2.2/32"))
	mustEcho(t, l.mustDial("tcp", client2, 80))
	mustEcho(t, l.mustDial("tcp", client3, 80))
	mustEcho(t, l.mustDial("tcp", client6, 80))
	wantEntries(t, client2, 0)
	wantEntries(t, client3, 1)
	wantEntries(t, client6, 1)
}

// TestNotrackElsewhere: other addresses, interfaces and ports than the client uses.
func TestNotrackElsewhere(t *testing.T) {
	l := newLink(t)
	l.serve(80)
	table := open(t)
	apply(t, table, untrack("tcp/80 at 192.0.2.2/31", "udp/80 at 2001:db8::/128", "tcp/80 on host1", "udp/80 on host",
		"tcp/81-82", "udp/1-79", "udp/81-65535", "echo at 192.0.2.2/32", "tcp at 192.0.2.2/32", "udp on lo0"))
	for _, network := range []string{"tcp", "udp"} {
		mustEcho(t, l.mustDial(network, client2, 80))
		mustEcho(t, l.mustDial(network, client6, 80))
	}
	l.pingHost()
	wantEntries(t, client2, 3)
	wantEntries(t, client6, 2)
	for s, w := range work(t, table).Selectors {
		if w != (policy.SelectorWork{}) {
			t.Errorf("%v: %+v, want nothing", s, w)
		}
	}
}

// serveThere answers on a port of the client, over TCP and UDP.
func (l *link) serveThere(port string) {
	l.t.Helper()
	var listener net.Listener
	var packets net.PacketConn
	var err, err2 error
	l.do(func() {
		listener, err = net.Listen("tcp4", client2+":"+port)
		packets, err2 = net.ListenPacket("udp4", client2+":"+port)
	})
	if err = errors.Join(err, err2); err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { listener.Close(); packets.Close() })
	go echoStreams(listener)
	go echoPackets(packets)
}

// ask connects from the host to the client.
func (l *link) ask(network, port string) (net.Conn, error) {
	c, err := net.DialTimeout(network, net.JoinHostPort(client2, port), 4*refuses)
	if err == nil {
		l.t.Cleanup(func() { c.Close() })
	}
	return c, err
}

func (l *link) mustAsk(network, port string) net.Conn {
	l.t.Helper()
	c, err := l.ask(network, port)
	if err != nil {
		l.t.Fatalf("%s to the client: %v", network, err)
	}
	return c
}

// TestNotrackWhole leaves whole protocols untracked, what the host itself asks included.
func TestNotrackWhole(t *testing.T) {
	for _, c := range []struct {
		selectors              []string
		tcp, udp, echo, asked4 int // entries by where they come from
	}{
		{[]string{"tcp"}, 0, 1, 1, 2},
		{[]string{"udp"}, 1, 0, 1, 2},
		{[]string{"tcp on host0", "udp with 192.0.2.0/24 at 192.0.2.1/32", "udp with 2001:db8::2/128"}, 0, 0, 1, 1},
		{[]string{"all"}, 0, 0, 0, 0},
	} {
		l := newLink(t)
		l.serve(80)
		l.serveThere("53")
		table := open(t)
		apply(t, table, untrack(c.selectors...))
		for _, network := range []string{"tcp", "udp"} {
			mustEcho(t, l.mustDial(network, client2, 80))
			mustEcho(t, l.mustDial(network, client6, 80))
			mustEcho(t, l.mustAsk(network, "53"))
		}
		l.pingHost()
		if err := ping(hostV4, client2); err != nil {
			t.Fatalf("ping client: %v", err)
		}
		wantEntries(t, client2, c.tcp+c.udp+c.echo)
		wantEntries(t, client6, c.tcp+c.udp)
		wantEntries(t, hostV4, c.asked4)
		for s, w := range work(t, table).Selectors {
			if w.Requests == 0 || w.Requests != w.Delivered ||
				w.Replies == 0 || w.Replies != w.Sent || w.New == 0 || w.Answers != w.Heard {
				t.Errorf("%v: %+v, want all to pass", s, w)
			}
			if !s.Remote.IsValid() && w.Answers == 0 {
				t.Errorf("%v: %+v, want what the client answered", s, w)
			}
		}
	}
}

// TestAllIsOnlyTheHost: nothing by way of lo, and nothing that the host forwards.
func TestAllIsOnlyTheHost(t *testing.T) {
	l := newLink(t)
	l.serve(80)
	table := open(t)
	apply(t, table, untrack("all", "tcp", "udp"))
	c, err := net.DialTimeout("tcp", "127.0.0.1:80", patience)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	mustEcho(t, c)
	wantEntries(t, "127.0.0.1", 1)

	if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0); err != nil {
		t.Fatal(err)
	}
	run(t, "ip route add 198.51.100.0/24 via "+client3)
	before := work(t, table).Selectors[selector("udp")].Requests
	l.do(func() {
		run(t, "ip route add 198.51.100.0/24 via "+hostV4)
		var through net.Conn
		if through, err = net.Dial("udp", "198.51.100.1:80"); err == nil {
			defer through.Close()
			_, err = through.Write([]byte("hello"))
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	mustEcho(t, l.mustDial("udp", client2, 80)) // what came before it has been through
	wantEntries(t, client2, 1)
	if n := work(t, table).Selectors[selector("udp")].Requests - before; n != 1 {
		t.Errorf("%d datagrams to the host, want 1: one was forwarded", n)
	}
}

// TestAnswersToTheHost: the host's own rules know the services, but take answers to what the host asks
// only for tracked ones.
func TestAnswersToTheHost(t *testing.T) {
	for _, name := range []string{"all", "tcp", "udp"} {
		l := newLink(t)
		l.serve(80)
		l.serveThere("53")
		feed(t, `table inet host { chain input { type filter hook input priority 0; policy drop;
			ct state established accept; meta l4proto { tcp, udp } th dport 80 accept; }; }`)
		table := open(t)
		d := Desired{Posture: policy.Posture{Notrack: tracked(policy.Watched, name)}}
		apply(t, table, d)
		network := "tcp"
		if name == "udp" {
			network = name
		}
		mustEcho(t, l.mustAsk(network, "53"))
		before := work(t, table).Selectors[selector(name)]
		if before.Answers == 0 || before.Heard != before.Answers {
			t.Errorf("%s, tracked: %+v, want the client's answers to pass", name, before)
		}
		d.Posture.Notrack[0].Stage = policy.Trial
		apply(t, table, d)
		mustEcho(t, l.mustDial(network, client2, 80))
		if c, err := l.ask(network, "53"); err == nil {
			if err = echoed(c, refuses); err == nil {
				t.Errorf("%s, untracked: the host hears the client", name)
			}
		}
		if w := work(t, table).Selectors[selector(name)]; w.Answers == before.Answers || w.Heard != before.Heard {
			t.Errorf("%s, untracked: %+v after %+v, want answers that nobody heard", name, w, before)
		}
	}
}

// TestTrialEndsNothing: where the host's own rules answer untracked packets with a reset, a trial
// stops its connections for a moment, but they live on.
func TestTrialEndsNothing(t *testing.T) {
	for _, name := range []string{
		"tcp/80", "tcp/80 with 192.0.2.0/24", "tcp/80 at 192.0.2.1/32 on host0", "tcp/1-80", "tcp", "all",
	} {
		t.Run(name, func(t *testing.T) {
			l := newLink(t)
			l.serve(80)
			feed(t, `table inet host { chain input { type filter hook input priority 0;
				ct state established,related accept; ct state new tcp dport 80 accept; `+
				`meta l4proto tcp reject with tcp reset; }; }`)
			c := l.mustDial("tcp", client2, 80)
			mustEcho(t, c)
			table := open(t)
			d := Desired{Posture: policy.Posture{Notrack: tracked(policy.Trial, name)}}
			apply(t, table, d)
			var timeout net.Error
			if err := echoed(c, 200*time.Millisecond); !errors.As(err, &timeout) || !timeout.Timeout() {
				t.Fatalf("in the trial: %v, want a timeout", err)
			}
			// Of everything that the host sends there is more than resets.
			w := work(t, table).Selectors[selector(name)]
			if w.Requests == 0 || w.Delivered != 0 || w.Replies != 0 && name != "all" {
				t.Errorf("%+v, want requests that nobody got, and no reset taken for an answer", w)
			}
			d.Posture.Uncounted = true
			apply(t, table, d)
			asked := func() bool { return work(t, table).Selectors[selector(name)].Asked > 0 }
			for end := time.Now().Add(patience); !asked(); { // TCP repeats itself in its own time
				if err := echoed(c, 200*time.Millisecond); !errors.As(err, &timeout) || !timeout.Timeout() {
					t.Fatalf("in the trial, between looks: %v, want a timeout", err)
				}
				if time.Now().After(end) {
					t.Fatal("nobody is seen who asked between looks")
				}
			}
			d.Posture.Notrack[0].Stage = policy.Watched
			apply(t, table, d)
			c.SetDeadline(time.Now().Add(patience))
			if _, err := io.ReadFull(c, make([]byte, len("hello"))); err != nil { // sent in the trial
				t.Errorf("after the trial: %v", err)
			}
		})
	}
}

// TestLoopbackStaysTracked: services are left untracked for others, not for the host itself.
func TestLoopbackStaysTracked(t *testing.T) {
	l := newLink(t)
	l.serve(80)
	table := open(t)
	d := untrack("tcp/80", "udp/80", "echo")
	d.Posture.Limits = []policy.Limit{block("127.0.0.0/8"), block(hostV4 + "/32")}
	for _, to := range []string{"127.0.0.1", hostV4} {
		d.Posture.Uncounted = to == hostV4
		apply(t, table, d)
		c, err := net.DialTimeout("tcp", net.JoinHostPort(to, "80"), patience)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		mustEcho(t, c)
		if err := ping(to, to); err != nil {
			t.Fatal(err)
		}
		wantEntries(t, to, 2)
	}
	if w := work(t, table); w.Selectors[selector("tcp/80")] != (policy.SelectorWork{}) || w.BlockedDropped != 0 ||
		w.FreedOpened != 0 {
		t.Errorf("work %+v, want nothing", w)
	}
}

// TestMulticast sends from and to a group.
func TestMulticast(t *testing.T) {
	l := newLink(t)
	table := open(t)
	apply(t, table, untrack("multicast"))
	group := &net.UDPAddr{IP: net.IPv4(224, 0, 0, 251), Port: 5353}
	device, err := net.InterfaceByName("host0")
	if err != nil {
		t.Fatal(err)
	}
	member, err := net.ListenMulticastUDP("udp4", device, group)
	if err != nil {
		t.Fatal(err)
	}
	defer member.Close()
	var in net.Conn
	l.do(func() { in, err = net.DialUDP("udp4", &net.UDPAddr{IP: net.ParseIP(client2)}, group) })
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := net.DialUDP("udp4", &net.UDPAddr{IP: net.ParseIP(hostV4)}, group)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	for _, c := range []net.Conn{in, out} {
		if _, err := c.Write([]byte("hello")); err != nil {
			t.Fatal(err)
		}
		member.SetReadDeadline(time.Now().Add(patience))
		if _, _, err := member.ReadFrom(make([]byte, 16)); err != nil {
			t.Fatal(err)
		}
	}
	wantEntries(t, client2, 0)
	wantEntries(t, hostV4, 0)
	w := work(t, table).Selectors[policy.Selector{Group: true}]
	if w.Requests == 0 || w.New != w.Requests || w.Delivered == 0 || w.Replies == 0 || w.Sent != w.Replies {
		t.Errorf("work %+v, want both directions", w)
	}
}

// TestCountersFollowTheHost: the host's own rules let tracked packets through and drop untracked
// ones, and the counters show where.
func TestCountersFollowTheHost(t *testing.T) {
	l := newLink(t)
	l.serve(80)
	feed(t, `
table inet filter {
	chain input {
		type filter hook input priority 0; policy drop;
		ct state established,related accept
		tcp dport 80 ct state new accept
		udp dport 80 accept
	}
	chain output {
		type filter hook output priority 0; policy drop;
		tcp sport 80 accept
		ct state established accept
	}
}
`)
	table := open(t)
	d := Desired{Posture: policy.Posture{Notrack: tracked(policy.Watched, "tcp/80", "udp/80")}}
	apply(t, table, d)
	mustEcho(t, l.mustDial("tcp", client2, 80))
	mustEcho(t, l.mustDial("udp", client2, 80))
	before := work(t, table)
	tcp, udp := before.Selectors[selector("tcp/80")], before.Selectors[selector("udp/80")]
	if tcp.New != 1 || tcp.Requests < 3 || tcp.Delivered != tcp.Requests || tcp.Replies < 2 || tcp.Sent != tcp.Replies {
		t.Errorf("tcp while tracked: %+v", tcp)
	}
	if want := (policy.SelectorWork{Requests: 1, New: 1, Delivered: 1, Replies: 1, Sent: 1}); udp != want {
		t.Errorf("udp while tracked: %+v, want %+v", udp, want)
	}

	d.Posture.Notrack = tracked(policy.Trial, "tcp/80", "udp/80")
	apply(t, table, d)
	if diff := cmp.Diff(before, work(t, table)); diff != "" {
		t.Errorf("going on trial changed the counters (-before +after):\n%s", diff)
	}
	if _, err := l.dial("tcp", client3, 80, refuses); err == nil {
		t.Error("untracked tcp passes the host's rules")
	}
	if err := echoed(l.mustDial("udp", client3, 80), refuses); err == nil {
		t.Error("untracked udp passes the host's rules")
	}
	after := work(t, table)
	diff := func(proto string) policy.SelectorWork {
		a, b := after.Selectors[selector(proto)], before.Selectors[selector(proto)]
		return policy.SelectorWork{
			Requests: a.Requests - b.Requests, New: a.New - b.New, Delivered: a.Delivered - b.Delivered,
			Replies: a.Replies - b.Replies, Sent: a.Sent - b.Sent,
		}
	}
	if w := diff("tcp/80"); w.New == 0 || w.Delivered != 0 || w.Replies != 0 {
		t.Errorf("tcp on trial: %+v, want requests dropped at input", w)
	}
	if w, want := diff("udp/80"), (policy.SelectorWork{Requests: 1, New: 1, Delivered: 1, Replies: 1}); w != want {
		t.Errorf("udp on trial: %+v, want the reply dropped at output: %+v", w, want)
	}

	d.Posture.Notrack = tracked(policy.Watched, "tcp/80", "udp/80")
	apply(t, table, d)
	mustEcho(t, l.mustDial("tcp", client3, 80))
	mustEcho(t, l.mustDial("udp", client3, 80))
}

// TestDropInvalid sends segments of no connection, which conntrack takes for invalid when it does not
// pick connections up midstream.
func TestDropInvalid(t *testing.T) {
	l := newLink(t)
	l.serve(80)
	if err := os.WriteFile("/proc/sys/net/netfilter/nf_conntrack_tcp_loose", []byte("0"), 0); err != nil {
		t.Fatal(err)
	}
	table := open(t)
	d := Desired{Posture: policy.Posture{DropInvalid: true}, Allow: []netip.Prefix{prefix(client4 + "/32")}}
	dropped := uint64(0)
	expect := func(from string, port uint16, more uint64) {
		t.Helper()
		apply(t, table, d)
		l.strayACK(from, port)
		mustEcho(t, l.mustDial("udp", from, 80)) // what came before it has been through
		dropped += more
		if w := work(t, table); w.InvalidDropped != dropped {
			t.Errorf("%d invalid packets dropped, want %d", w.InvalidDropped, dropped)
		}
	}
	expect(client2, 80, 1)
	expect(client4, 80, 0) // allowed
	d.Posture.Notrack = tracked(policy.Watched, "tcp/80")
	expect(client2, 80, 1)
	d.Posture.Notrack = tracked(policy.Trial, "tcp/80")
	expect(client2, 80, 0) // untracked
	expect(client2, 81, 1)
	d.Posture.Notrack = tracked(policy.Trial, "tcp/81 with 192.0.2.2/32")
	expect(client2, 81, 0)
	expect(client3, 81, 1)
	mustEcho(t, l.mustDial("tcp", client2, 80)) // the valid go on
}

// TestDropInvalidSparesErrors: conntrack does not know the flow that an ICMP error is about which goes untracked or by
// another route, and calls the error invalid. Path MTU discovery needs it.
func TestDropInvalidSparesErrors(t *testing.T) {
	for _, notrack := range [][]policy.Untracked{
		nil,
		tracked(policy.Trial, "tcp/80"),
		tracked(policy.Freed, "tcp/80 with 192.0.2.2/32"),
	} {
		l := newLink(t)
		l.serve(80)
		table := open(t)
		apply(t, table, Desired{Posture: policy.Posture{DropInvalid: true, Notrack: notrack}})
		l.tooBig(client2, 80)
		mustEcho(t, l.mustDial("udp", client2, 80)) // what came before it has been through
		if w := work(t, table); w.InvalidDropped > 0 {
			t.Errorf("%+v: %d invalid packets dropped, want none", notrack, w.InvalidDropped)
		}
	}
}

// TestLimitMeetsNotrack: what a limited source opens counts before it would be left untracked.
func TestLimitMeetsNotrack(t *testing.T) {
	l := newLink(t)
	l.serve(80)
	table := open(t)
	d := untrack("tcp/80")
	d.Posture.Limits = []policy.Limit{slow(client2 + "/32")}
	apply(t, table, d)
	if _, err := l.dial("tcp", client2, 80, refuses); err == nil {
		t.Error("limited source opens a connection")
	}
	mustEcho(t, l.mustDial("tcp", client3, 80))
	wantEntries(t, client3, 0)
	if w := work(t, table); w.LimitedDropped == 0 {
		t.Errorf("work %+v, want limited packets", w)
	}
}
