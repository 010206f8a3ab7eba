package nft

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ctguard/policy"
)

// cookieServices are a service of hostRules, and one of some clients that are not asked by way of an interface.
var (
	cookieServices = []policy.Selector{selector(forwards[0]),
		selector("tcp/25 with 198.51.100.0/24 at 203.0.113.1/32 to 10.0.0.3:25 by wan0")}
	cookieMSS = map[policy.Selector]uint16{cookieServices[0]: 1452, cookieServices[1]: 1400}
)

// byState is a filter that knows what is forwarded by the state of its connections, and one source that it keeps out.
// A second port leads to where the inside host speaks first.
const byState = `table inet host {
	chain prerouting {
		type nat hook prerouting priority dstnat
		iifname "wan0" ip daddr 203.0.113.1 tcp dport 443 dnat ip to 10.0.0.2:8443
		iifname "wan0" ip daddr 203.0.113.1 tcp dport 25 dnat ip to 10.0.0.2
		iifname "wan0" ip6 daddr 2001:db8:1::1 tcp dport 443 dnat ip6 to [fd00::2]:8443
		iifname "wan0" ip6 daddr 2001:db8:1::1 tcp dport 25 dnat ip6 to fd00::2
	}
	chain postrouting {
		type nat hook postrouting priority srcnat
		oifname "wan0" masquerade
	}
	chain forward {
		type filter hook forward priority filter; policy drop
		ct state established,related accept
		ip saddr 203.0.113.9 drop
		ct status dnat accept
	}
	chain input {
		type filter hook input priority filter; policy drop
		ct state established,related accept
		meta l4proto { icmp, ipv6-icmp } accept
	}
}
`

// The services of byState.
var insideServices = []policy.Selector{
	selector("tcp/443 at 203.0.113.1/32 on wan0 to 10.0.0.2:8443 by wan0"),
	selector("tcp/443 at 2001:db8:1::1/128 on wan0 to [fd00::2]:8443 by wan0"),
	selector("tcp/25 at 203.0.113.1/32 on wan0 to 10.0.0.2:25 by wan0"),
	selector("tcp/25 at 2001:db8:1::1/128 on wan0 to [fd00::2]:25 by wan0"),
}

// insideProxied wants them behind synproxy.
func insideProxied() Desired {
	said := make(map[policy.Selector]uint16)
	for _, s := range insideServices {
		said[s] = 1400
	}
	return Desired{Posture: policy.Posture{Synproxy: insideServices, InsideMSS: said, Learn: insideServices}}
}

// newProxied makes a gateway with the rules of byState, strict about TCP as synproxy needs it.
func newProxied(t *testing.T) *gateway {
	t.Helper()
	g := newGateway(t, byState)
	strict(t)
	return g
}

// to dials a port of the gateway by IPv4 or IPv6 from one of the client's addresses, or any.
func (g *gateway) to(network, from string, port int, wait time.Duration) (c net.Conn, err error) {
	d := net.Dialer{Timeout: wait}
	if from != "" {
		d.LocalAddr = &net.TCPAddr{IP: net.ParseIP(from)}
	}
	addr := map[string]string{"tcp4": public4, "tcp6": public6}[network]
	g.in(g.client, func() { c, err = d.Dial(network, net.JoinHostPort(addr, fmt.Sprint(port))) })
	if err == nil {
		g.t.Cleanup(func() { c.Close() })
	}
	return c, err
}

func (g *gateway) mustTo(network string, port int) net.Conn {
	g.t.Helper()
	c, err := g.to(network, "", port, patience)
	if err != nil {
		g.t.Fatalf("%s port %d: %v", network, port, err)
	}
	return c
}

// resets counts the TCP resets that clients see from now on.
func (g *gateway) resets() func() int {
	g.t.Helper()
	g.in(g.client, func() {
		feed(g.t, `table inet seen { counter resets { }; chain in { type filter hook input priority -300;
			tcp flags & rst == rst counter name resets; }; }`)
	})
	return func() (n int) {
		g.t.Helper()
		g.in(g.client, func() {
			text := run(g.t, "nft list counter inet seen resets")
			_, text, _ = strings.Cut(text, "packets ")
			fmt.Sscan(text, &n)
		})
		return n
	}
}

// tcpNetworks are those of both families.
var tcpNetworks = []string{"tcp4", "tcp6"}

// TestCookiesBeforeTranslation: a SYN flood at forwarded services makes no entries, and clients are served, by a filter
// that knows packets by the state of their connection. Whom it keeps out stays out. No inside address leaves.
func TestCookiesBeforeTranslation(t *testing.T) {
	g := newProxied(t)
	leaks, resets := g.watchFor("10.0.0.0/8", "fd00::/8"), g.resets()
	g.in(g.client, func() { run(t, "ip address add 203.0.113.9/24 dev eth0") })
	table := open(t)
	apply(t, table, insideProxied())
	g.in(g.client, func() {
		for i := range 200 {
			sendSegment(t, fmt.Sprintf("203.0.113.%d", 20+i), public4, 443, 0x02)
		}
	})
	for _, network := range tcpNetworks {
		c := g.mustTo(network, 443)
		if said := segmentSize(t, c); said > 1400 {
			t.Errorf("%s: the client may send segments of %d bytes, want 1400 at most", network, said)
		}
		exchange(t, c)
	}
	if got := entries(t, "203.0.113.20"); len(got) > 0 {
		t.Errorf("a SYN left %q", got)
	}
	if _, err := g.to("tcp4", "203.0.113.9", 443, refuses); err == nil {
		t.Error("synproxy lets a source in that the host's filter keeps out")
	}
	g.in(g.client, func() { sendSegment(t, outer4, public4, 443, 0x10) }) // an ACK without a cookie
	exchange(t, g.mustTo("tcp4", 443))
	w := work(t, table).Proxied
	want := map[policy.Selector]policy.ProxiedService{insideServices[0]: {Completed: 2, Delivered: 2},
		insideServices[1]: {Completed: 1, Delivered: 1}, insideServices[2]: {}, insideServices[3]: {}}
	if w.SYNs < 203 || !maps.Equal(w.Services, want) || w.Checked != w.Returned || w.Checked != 4 {
		t.Errorf("counted %+v", w)
	}
	if list := leaks(); len(list) > 0 {
		t.Errorf("seen outside: %q", list)
	}
	if n := resets(); n > 0 {
		t.Errorf("%d resets seen outside", n)
	}
}

// segmentSize is the longest segment that a connection sends, without options: TCP_MAXSEG of tcp(7).
func segmentSize(t *testing.T, c net.Conn) (size int) {
	t.Helper()
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	raw.Control(func(fd uintptr) { size, err = unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_MAXSEG) })
	if err != nil {
		t.Fatal(err)
	}
	return size
}

// TestInsideMSS: what segments inside hosts take is learnt from what they say to clients.
func TestInsideMSS(t *testing.T) {
	g := newGateway(t, byState)
	table := open(t)
	apply(t, table, Desired{Posture: policy.Posture{Learn: insideServices}})
	if said := work(t, table).InsideMSS; len(said) > 0 {
		t.Errorf("known before anybody spoke: %v", said)
	}
	mustEcho(t, g.mustTo("tcp4", 443))
	g.in(g.server, func() { run(t, "ip link set eth0 mtu 1400") })
	for _, network := range tcpNetworks {
		mustEcho(t, g.mustTo(network, 443))
	}
	want := map[policy.Selector]uint16{insideServices[0]: 1400 - headers4, insideServices[1]: 1400 - headers6}
	if said := work(t, table).InsideMSS; !maps.Equal(said, want) {
		t.Errorf("inside hosts say %v, want %v", said, want)
	}
	intact(t, table, true)
	apply(t, table, Desired{Posture: policy.Posture{DropInvalid: true}})
	if said := work(t, table).InsideMSS; len(said) > 0 {
		t.Errorf("known although nobody listens: %v", said)
	}
}

// What IP and TCP take of an MTU.
const headers4, headers6 = 20 + 20, 40 + 20

// TestCookiesDoNotStall: nobody waits for a retransmission, whoever speaks first.
func TestCookiesDoNotStall(t *testing.T) {
	g := newProxied(t)
	g.in(g.server, func() { greet(t, 25) })
	for _, where := range []chan func(){g.client, g.server} {
		g.in(where, func() { setting(t, "ipv4/tcp_early_retrans", "0") })
	}
	table := open(t)
	apply(t, table, insideProxied())
	for _, network := range tcpNetworks { // neighbours know each other
		mustEcho(t, g.mustTo(network, 443))
	}
	sent := func() (n int) {
		for _, where := range []chan func(){g.client, g.server} {
			g.in(where, func() { n += retransmitted(t) })
		}
		return n
	}
	before := sent()
	const connections = 250
	for range connections {
		for _, network := range tcpNetworks {
			c := g.mustTo(network, 443)
			mustEcho(t, c)
			c.Close()
			c = g.mustTo(network, 25)
			c.SetDeadline(time.Now().Add(patience))
			if _, err := io.ReadFull(c, make([]byte, len(greeting))); err != nil {
				t.Fatalf("greeting: %v", err)
			}
			c.Close()
		}
	}
	if n := sent() - before; n >= 4*connections/100 {
		t.Errorf("%d segments sent again in %d connections", n, 4*connections)
	}
}

// TestCookiesComeAndGo: connections live on when synproxy enters, and those that it accepted when it leaves, in order
// or because its process was killed, whoever is the first to speak then. No inside address leaves, nothing is reset.
func TestCookiesComeAndGo(t *testing.T) {
	for _, killed := range []bool{false, true} {
		t.Run(fmt.Sprintf("killed %v", killed), func(t *testing.T) {
			g := newProxied(t)
			leaks, resets := g.watchFor("10.0.0.0/8", "fd00::/8"), g.resets()
			clients := []string{"203.0.113.%d", "2001:db8:1::%d"}
			g.in(g.client, func() {
				for k := range 13 {
					run(t, fmt.Sprintf("ip address add "+clients[0]+"/24 dev eth0", k+10))
					run(t, fmt.Sprintf("ip address add "+clients[1]+"/64 dev eth0 nodad", k+10))
				}
			})
			var listeners []net.Listener
			for _, network := range tcpNetworks {
				g.in(g.server, func() { listeners = append(listeners, listenOn(t, network, 25)) })
			}
			var all []pair
			more := func(n int) {
				for k := range n { // from many addresses: each has a clock of its own with the inside host
					for i, network := range tcpNetworks {
						client, err := g.to(network, fmt.Sprintf(clients[i], k+10), 25, patience)
						if err != nil {
							t.Fatal(err)
						}
						server, err := listeners[i].Accept()
						if err != nil {
							t.Fatal(err)
						}
						t.Cleanup(func() { server.Close() })
						all = append(all, pair{client, server})
					}
				}
			}
			more(12)
			table := open(t)
			apply(t, table, insideProxied())
			more(13)
			talk(t, all)
			leave := insideProxied()
			leave.Posture.LastCookies = true
			if killed {
				table.LetGo()
			} else {
				apply(t, table, leave)
				apply(t, table, Desired{})
			}
			if text := run(t, "nft list tables"); strings.Contains(text, Name) {
				t.Fatalf("left behind: %s", text)
			}
			more(12)
			talk(t, all)
			setting(t, "netfilter/nf_conntrack_tcp_loose", "1")
			talk(t, all)
			if list := leaks(); len(list) > 0 {
				t.Errorf("seen outside: %q", list)
			}
			if n := resets(); n > 0 {
				t.Errorf("%d resets seen outside", n)
			}
		})
	}
}

// pair is both ends of a connection.
type pair struct{ client, server net.Conn }

// talk has the client speak first on every second connection, and the inside host on the others.
func talk(t *testing.T, all []pair) {
	t.Helper()
	for i, p := range all {
		first, second := p.client, p.server
		if i/2%2 == 1 {
			first, second = second, first
		}
		if err := errors.Join(says(first, second), says(second, first)); err != nil {
			t.Fatalf("connection %d of %d: %v", i, len(all), err)
		}
	}
}

// says sends something from one end to the other.
func says(from, to net.Conn) error {
	const words = "can you hear me?"
	if _, err := io.WriteString(from, words); err != nil {
		return err
	}
	to.SetReadDeadline(time.Now().Add(patience))
	_, err := io.ReadFull(to, make([]byte, len(words)))
	return err
}

func listenOn(t *testing.T, network string, port int) net.Listener {
	listener, err := net.Listen(network, fmt.Sprint(":", port))
	if err != nil {
		t.Error(err)
		return nil
	}
	t.Cleanup(func() { listener.Close() })
	return listener
}

// TestLastCookiesInside: on its way out synproxy hands out no more cookies in an inside host's place.
func TestLastCookiesInside(t *testing.T) {
	g := newProxied(t)
	table := open(t)
	d := insideProxied()
	d.Posture.LastCookies = true
	apply(t, table, d)
	for _, network := range tcpNetworks {
		mustEcho(t, g.mustTo(network, 443))
	}
	g.in(g.client, func() { sendSegment(t, outer4, public4, 443, 0x10) })
	mustEcho(t, g.mustTo("tcp4", 443)) // what came before it has been through
	if w := work(t, table).Proxied; w.SYNs != 0 || w.Completed() != 0 || w.Checked != 1 {
		t.Errorf("counted %+v, want one packet checked for a cookie and nothing else", w)
	}
}

// TestCookiesFollowTheHost: a service that the host translates elsewhere is none of synproxy's until that is known.
func TestCookiesFollowTheHost(t *testing.T) {
	g := newProxied(t)
	g.in(g.server, func() {
		run(t, "ip address add 10.0.0.3/24 dev eth0")
		serveOn(t, "tcp4", 9443)
	})
	table := open(t)
	d := insideProxied()
	apply(t, table, d)
	before := g.mustTo("tcp4", 443)
	mustEcho(t, before)
	run(t, "nft flush chain inet host prerouting")
	feed(t, `table inet host { chain prerouting { ip daddr 203.0.113.1 tcp dport 443 dnat ip to 10.0.0.3:9443; }; }`)
	c := g.mustTo("tcp4", 443)
	mustEcho(t, c)
	wantTo := func(c net.Conn, host string) {
		t.Helper()
		_, port, _ := strings.Cut(c.LocalAddr().String(), ":")
		got := run(t, "conntrack -L -p tcp --orig-port-src "+port)
		if !strings.Contains(got, "src="+host) {
			t.Errorf("a connection does not lead to %s: %s", host, got)
		}
	}
	wantTo(c, "10.0.0.3")
	if w := work(t, table).Proxied; w.Completed() != 1 {
		t.Errorf("counted %+v, want the connection from before", w)
	}
	moved := selector("tcp/443 at 203.0.113.1/32 to 10.0.0.3:9443 by wan0")
	d.Posture.Synproxy, d.Posture.InsideMSS = []policy.Selector{moved}, map[policy.Selector]uint16{moved: 1460}
	apply(t, table, d)
	after := g.mustTo("tcp4", 443)
	for _, c := range []net.Conn{before, c, after} {
		mustEcho(t, c)
	}
	wantTo(after, "10.0.0.3")
	if w := work(t, table).Proxied.Services[moved]; w != (policy.ProxiedService{Completed: 1, Delivered: 1}) {
		t.Errorf("counted %+v, want one connection", w)
	}
}

// TestCookiesAreStopped: where the host's own rules stop what synproxy needs, or the inside host accepts nothing, the
// counters show it.
func TestCookiesAreStopped(t *testing.T) {
	for name, spoil := range map[string]func(*gateway){
		"output": func(*gateway) {
			feed(t, `table inet out { chain out { type filter hook output priority 0; policy drop;
				ct state established accept; meta l4proto { icmp, ipv6-icmp } accept; }; }`)
		},
		"inside host": func(g *gateway) {
			g.in(g.server, func() {
				feed(t, `table inet in { chain in { type filter hook input priority 0; tcp dport 8443 drop; }; }`)
			})
		},
	} {
		t.Run(name, func(t *testing.T) {
			g := newProxied(t)
			spoil(g)
			table := open(t)
			apply(t, table, insideProxied())
			if err := echoed(g.mustTo("tcp4", 443), refuses); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatalf("%v: this test shows nothing", err)
			}
			if w := work(t, table).Proxied.Services[insideServices[0]]; w.Completed == 0 || w.Delivered != 0 {
				t.Errorf("counted %+v, want connections opened and none that came about", w)
			}
		})
	}
	t.Run("cookie", func(t *testing.T) {
		g := newProxied(t)
		feed(t, `table inet strict { chain pre { type filter hook prerouting priority -140; ct state invalid drop; }; }`)
		table := open(t)
		apply(t, table, insideProxied())
		if err := echoed(g.mustTo("tcp4", 443), refuses); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("%v: this test shows nothing", err)
		}
		if w := work(t, table).Proxied; w.Returned == 0 || w.Checked != 0 {
			t.Errorf("counted %+v, want cookies returned and none checked", w)
		}
	})
}

// TestCookiesSpareTheAllowlist: allowed sources never meet synproxy.
func TestCookiesSpareTheAllowlist(t *testing.T) {
	g := newProxied(t)
	table := open(t)
	d := insideProxied()
	d.Allow = []netip.Prefix{prefix(outer4 + "/32"), prefix(outer6 + "/128")}
	apply(t, table, d)
	for _, network := range tcpNetworks {
		mustEcho(t, g.mustTo(network, 443))
	}
	if w := work(t, table).Proxied; w.SYNs != 0 || w.Completed() != 0 {
		t.Errorf("counted %+v, want nothing", w)
	}
}

// TestStrayAnswersStay: what the inside host says to clients of whom conntrack knows nothing does not leave with its
// own address, though the host's filter would let it.
func TestStrayAnswersStay(t *testing.T) {
	g := newProxied(t)
	g.insideOut = true
	run(t, "nft insert rule inet host forward ct state invalid accept")
	var listener net.Listener
	g.in(g.server, func() { listener = listenOn(t, "tcp4", 25) })
	leaks := g.watchFor("10.0.0.0/8")
	said := func() []string {
		t.Helper()
		g.mustTo("tcp4", 25)
		server, err := listener.Accept()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { server.Close() })
		run(t, "conntrack -F")
		if _, err := io.WriteString(server, greeting); err != nil {
			t.Fatal(err)
		}
		g.in(g.server, func() { err = ping(inside4, outer4) }) // what came before it has been through
		if err != nil {
			t.Fatal(err)
		}
		return leaks()
	}
	run(t, "nft add rule inet host forward icmp type echo-request accept")
	if list := said(); len(list) == 0 {
		t.Error("nothing leaves without synproxy: this test shows nothing")
	}
	table := open(t)
	apply(t, table, insideProxied())
	if list := said(); len(list) > 0 {
		t.Errorf("seen outside: %q", list)
	}
}
