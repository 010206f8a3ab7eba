package nft

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"ctguard/agent/survey"
	"ctguard/policy"
)

// proxy wants port 80 behind synproxy, with what this host says of itself.
func proxy(t *testing.T) Desired {
	t.Helper()
	said, err := survey.New("/").Handshake()
	if err != nil {
		t.Fatal(err)
	}
	return Desired{Posture: policy.Posture{Synproxy: listeners(80), Handshake: said}}
}

// strict is what synproxy needs of the namespace.
func strict(t *testing.T) { setting(t, "netfilter/nf_conntrack_tcp_loose", "0") }

func setting(t *testing.T, name, value string) {
	t.Helper()
	if err := os.WriteFile("/proc/sys/net/"+name, []byte(value), 0); err != nil {
		t.Fatal(err)
	}
}

// stateful is a careful administrator's filter; accept is how it lets new connections in.
func stateful(t *testing.T, accept string) {
	t.Helper()
	feed(t, `table inet host { chain input { type filter hook input priority 0; policy drop;
		ct state established,related accept; ct state invalid drop; iif lo accept; ip saddr 192.0.2.4 drop;
		icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept; udp dport 80 accept; `+accept+`; };
		chain output { type filter hook output priority 0; policy drop; ct state established,related accept; oif lo accept;
		icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept; }; }`)
}

// exchange sends a connection more than one window and reads it back.
func exchange(t *testing.T, c net.Conn) {
	t.Helper()
	const size = 512 << 10
	c.SetDeadline(time.Now().Add(patience))
	sent := make(chan error, 1)
	go func() {
		_, err := c.Write(make([]byte, size))
		sent <- err
	}()
	if n, err := io.CopyN(io.Discard, c, size); err != nil {
		t.Errorf("%v: %d bytes came back: %v", c.LocalAddr(), n, err)
	}
	if err := <-sent; err != nil {
		t.Errorf("%v: %v", c.LocalAddr(), err)
	}
}

// TestSynproxy: behind synproxy a SYN flood makes no entries and clients are served, whichever way
// the host's own filter lets them in; those whom it keeps out stay out.
func TestSynproxy(t *testing.T) {
	for _, accept := range []string{"tcp dport 80 accept", "ct state new tcp dport 80 accept"} {
		t.Run(accept, func(t *testing.T) {
			l := newLink(t)
			l.serve(80)
			stateful(t, accept)
			strict(t)
			table := open(t)
			apply(t, table, proxy(t))
			for i := range 200 {
				l.segment(fmt.Sprintf("192.0.2.%d", 20+i), 80, 0x02)
			}
			mustEcho(t, l.mustDial("udp", client2, 80)) // what came before it has been through
			exchange(t, l.mustDial("tcp", client2, 80))
			exchange(t, l.mustDial("tcp", client6, 80))
			if got := entries(t, "192.0.2.20"); len(got) > 0 {
				t.Errorf("a SYN left %q", got)
			}
			l.strayACK(client3, 80)
			if _, err := l.dial("tcp", client4, 80, refuses); err == nil {
				t.Error("synproxy lets a source in that the host's filter keeps out")
			}
			w := work(t, table).Proxied
			if w.SYNs < 202 || w.Services[listeners(80)[0]] != (policy.ProxiedService{Completed: 2, Delivered: 2}) ||
				w.Checked != w.Returned || w.Checked < 3 {
				t.Errorf("counted %+v", w)
			}
		})
	}
}

// TestSynproxyDoesNotStall: nobody waits for a retransmission, whoever speaks first.
func TestSynproxyDoesNotStall(t *testing.T) {
	l := newLink(t)
	l.serve(80)
	greet(t, 81)
	stateful(t, "tcp dport { 80, 81 } accept")
	strict(t)
	setting(t, "ipv4/tcp_timestamps", "2")
	setting(t, "ipv4/tcp_early_retrans", "0") // no tail loss probes: they come when a machine is busy
	d := proxy(t)
	d.Posture.Synproxy = listeners(80, 81)
	table := open(t)
	apply(t, table, d)
	before := retransmitted(t)
	const connections = 500
	for range connections {
		for _, from := range []string{client2, client6} {
			c := l.mustDial("tcp", from, 80)
			mustEcho(t, c)
			c.Close()
			c = l.mustDial("tcp", from, 81)
			c.SetDeadline(time.Now().Add(patience))
			if _, err := io.ReadFull(c, make([]byte, len(greeting))); err != nil {
				t.Fatalf("greeting: %v", err)
			}
			c.Close()
		}
	}
	// A busy machine may send one again; a stall does once in a hundred connections, and in each where the server
	// speaks first.
	if n := retransmitted(t) - before; n >= 4*connections/100 {
		t.Errorf("%d segments sent again in %d connections", n, 4*connections)
	}
	if w := work(t, table).Proxied; w.Completed() != 4*connections {
		t.Errorf("%d of %d connections came by way of synproxy", w.Completed(), 4*connections)
	}
}

const greeting = "welcome"

// greet serves a protocol in which the server speaks first.
func greet(t *testing.T, port int) {
	t.Helper()
	listener, err := net.Listen("tcp", fmt.Sprintf(":%d", port))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				io.WriteString(c, greeting)
				io.Copy(io.Discard, c)
			}()
		}
	}()
}

// retransmitted returns how many TCP segments the host has sent again: RetransSegs of RFC 4022.
func retransmitted(t *testing.T) int {
	t.Helper()
	text, err := os.ReadFile("/proc/thread-self/net/snmp")
	if err != nil {
		t.Fatal(err)
	}
	var rows [][]string
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, "Tcp:") {
			rows = append(rows, strings.Fields(line))
		}
	}
	n, err := strconv.Atoi(rows[1][slices.Index(rows[0], "RetransSegs")])
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestSynproxyComesAndGoes: connections live on when synproxy enters, and those it accepted when it
// leaves, though nobody adapts their timestamps any more.
func TestSynproxyComesAndGoes(t *testing.T) {
	l := newLink(t)
	l.serve(80)
	stateful(t, "tcp dport 80 accept")
	before := []net.Conn{l.mustDial("tcp", client2, 80), l.mustDial("tcp", client6, 80)}
	for _, c := range before {
		mustEcho(t, c)
	}
	strict(t)
	setting(t, "ipv4/tcp_timestamps", "2")
	table := open(t)
	apply(t, table, proxy(t))
	var during []net.Conn
	for range 10 {
		during = append(during, l.mustDial("tcp", client2, 80), l.mustDial("tcp", client6, 80))
	}
	for _, c := range append(before, during...) {
		exchange(t, c)
	}
	apply(t, table, Desired{})
	setting(t, "ipv4/tcp_timestamps", "1")
	for _, c := range append(before, during...) {
		exchange(t, c)
	}
	exchange(t, l.mustDial("tcp", client2, 80))
}

// TestLastCookies: on its way out synproxy hands out no more cookies, and takes those that come back.
func TestLastCookies(t *testing.T) {
	l := newLink(t)
	l.serve(80)
	stateful(t, "tcp dport 80 accept")
	strict(t)
	table := open(t)
	d := proxy(t)
	d.Posture.LastCookies = true
	apply(t, table, d)
	mustEcho(t, l.mustDial("tcp", client2, 80))
	l.strayACK(client3, 80)
	mustEcho(t, l.mustDial("udp", client3, 80)) // what came before it has been through
	if w := work(t, table).Proxied; w.SYNs != 0 || w.Completed() != 0 || w.Checked != 1 {
		t.Errorf("counted %+v, want one packet checked for a cookie and nothing else", w)
	}
}

// TestSynproxyIsStopped: where the host's own rules stop what synproxy needs, the counters show it.
func TestSynproxyIsStopped(t *testing.T) {
	t.Run("lo", func(t *testing.T) {
		l := newLink(t)
		l.serve(80)
		feed(t, `table inet host { chain input { type filter hook input priority 0; policy drop;
			ct state established accept; iifname "host0" tcp dport 80 accept; }; }`)
		strict(t)
		table := open(t)
		apply(t, table, proxy(t))
		if err := echoed(l.mustDial("tcp", client2, 80), refuses); err == nil {
			t.Fatal("the connection gets through: this test shows nothing")
		}
		w := work(t, table).Proxied
		if one := w.Services[listeners(80)[0]]; one.Completed == 0 || one.Delivered != 0 {
			t.Errorf("counted %+v, want connections opened and none delivered", w)
		}
	})
	t.Run("cookie", func(t *testing.T) {
		l := newLink(t)
		l.serve(80)
		feed(t, `table inet host { chain prerouting { type filter hook prerouting priority -140; ct state invalid drop; }; }`)
		strict(t)
		table := open(t)
		apply(t, table, proxy(t))
		if err := echoed(l.mustDial("tcp", client2, 80), refuses); err == nil {
			t.Fatal("the connection gets through: this test shows nothing")
		}
		if w := work(t, table).Proxied; w.Returned == 0 || w.Checked != 0 {
			t.Errorf("counted %+v, want cookies returned and none checked", w)
		}
	})
}

// TestSynproxyByPort: a port whose listener the host's own rules keep from synproxy shows beside one that works,
// and allowed sources never meet it.
func TestSynproxyByPort(t *testing.T) {
	l := newLink(t)
	l.serve(80)
	l.serve(81)
	feed(t, `table inet host { chain input { type filter hook input priority 0; policy drop;
		ct state established accept; tcp dport 80 accept; iifname "ifb0" tcp dport 81 accept; `+
		`iifname "host0" tcp dport 81 accept; }; }`)
	strict(t)
	table := open(t)
	d := proxy(t)
	d.Posture.Synproxy = listeners(80, 81)
	d.Allow = []netip.Prefix{prefix(client3 + "/32")}
	apply(t, table, d)
	mustEcho(t, l.mustDial("tcp", client2, 80))
	if err := echoed(l.mustDial("tcp", client2, 81), refuses); err == nil {
		t.Fatal("port 81 works: this test shows nothing")
	}
	mustEcho(t, l.mustDial("tcp", client3, 81))
	w := work(t, table).Proxied
	if p := w.Services[listeners(80)[0]]; p.Completed != 1 || p.Delivered != 1 {
		t.Errorf("port 80: %+v", p)
	}
	if p := w.Services[listeners(81)[0]]; p.Completed != 1 || p.Delivered != 0 {
		t.Errorf("port 81: %+v", p)
	}
}

// TestMartiansSayNothing: packets that the kernel drops for their source before the host's rules see them are
// no evidence against those.
func TestMartiansSayNothing(t *testing.T) {
	l := newLink(t)
	l.serve(80)
	table := open(t)
	apply(t, table, untrack("tcp/80", "tcp/81 with 0.0.0.0/0"))
	mustEcho(t, l.mustDial("tcp", client2, 80))
	before := work(t, table).Selectors
	for range 20 {
		l.segment(hostV4, 80, 0x02)
		l.segment(hostV4, 81, 0x02)
	}
	mustEcho(t, l.mustDial("udp", client2, 80)) // what came before it has been through
	for s, w := range work(t, table).Selectors {
		if w.Requests != before[s].Requests {
			t.Errorf("%s: %d requests of nobody counted", s, w.Requests-before[s].Requests)
		}
	}
}
