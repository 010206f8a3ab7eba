package nft

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"ctguard/agent/conntrack/conntrackfill"
	"ctguard/policy"
)

// Addresses around a gateway: what clients ask, clients, and the inside host.
const (
	public4, public6 = "203.0.113.1", "2001:db8:1::1"
	outer4, outer6   = "203.0.113.2", "2001:db8:1::2"
	inside4, inside6 = "10.0.0.2", "fd00::2"
)

// hostRules are a gateway's: some ports of its address lead to an inside host, others are routed.
const hostRules = `table inet host {
	chain prerouting {
		type nat hook prerouting priority dstnat
		iifname "wan0" ip daddr 203.0.113.1 tcp dport 443 dnat ip to 10.0.0.2:8443
		iifname "wan0" ip daddr 203.0.113.1 udp dport 53 dnat ip to 10.0.0.2:5353
		iifname "wan0" ip6 daddr 2001:db8:1::1 tcp dport 443 dnat ip6 to [fd00::2]:8443
		iifname "wan0" ip6 daddr 2001:db8:1::1 udp dport 53 dnat ip6 to [fd00::2]:5353
	}
	chain postrouting {
		type nat hook postrouting priority srcnat
		oifname "wan0" masquerade
	}
	chain forward {
		type filter hook forward priority filter; policy drop
		%s
		tcp dport 8443 accept
		udp dport 5353 accept
		meta l4proto { icmp, ipv6-icmp } accept
		iifname "lan0" accept
	}
}
`

// The services of hostRules.
var forwards = []string{
	"tcp/443 at 203.0.113.1/32 on wan0 to 10.0.0.2:8443 by wan0",
	"udp/53 at 203.0.113.1/32 on wan0 to 10.0.0.2:5353 by wan0",
	"tcp/443 at 2001:db8:1::1/128 on wan0 to [fd00::2]:8443 by wan0",
	"udp/53 at 2001:db8:1::1/128 on wan0 to [fd00::2]:5353 by wan0",
}

// gateway is the test's own namespace, between one with a client and one with an inside host.
type gateway struct {
	t              *testing.T
	client, server chan func()
	seen           func() []string // martians
	insideOut      bool            // the test itself has inside addresses outside
}

// noDetection has link-local addresses usable at once: nobody else is on these links.
const noDetection = "sysctl -qw net.ipv6.conf.default.dad_transmits=0"

func newGateway(t *testing.T, rules string) *gateway {
	t.Helper()
	inNewNetNS(t)
	run(t, noDetection)
	g := &gateway{t: t}
	g.client = g.neighbour("wan0", []string{public4 + "/24", public6 + "/64"}, []string{outer4 + "/24", outer6 + "/64"})
	g.server = g.neighbour("lan0", []string{"10.0.0.1/24", "fd00::1/64"}, []string{inside4 + "/24", inside6 + "/64"})
	run(t, "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 net.ipv4.conf.all.rp_filter=1")
	g.in(g.server, func() { run(t, "ip route add default via 10.0.0.1"); run(t, "ip route add default via fd00::1") })
	feed(t, rules)
	for _, network := range []string{"tcp4", "tcp6", "udp4", "udp6"} {
		g.in(g.server, func() { serveOn(t, network, map[string]int{"tcp": 8443, "udp": 5353}[network[:3]]) })
	}
	g.seen = g.martians()
	t.Cleanup(func() {
		if found := g.seen(); len(found) > 0 && !g.insideOut {
			t.Errorf("martians: %q", found)
		}
	})
	return g
}

// neighbour makes a namespace behind a link with addresses on both ends.
func (g *gateway) neighbour(device string, here, there []string) chan func() {
	g.t.Helper()
	work, thread := make(chan func()), make(chan int)
	g.t.Cleanup(func() { close(work) })
	go func() {
		if err := conntrackfill.Enter(); err != nil {
			close(thread)
			return
		}
		thread <- unix.Gettid()
		for f := range work {
			f()
		}
	}()
	tid, ok := <-thread
	if !ok {
		g.t.Fatal("unshare network namespace")
	}
	g.in(work, func() { run(g.t, noDetection) })
	run(g.t, fmt.Sprintf("ip link add %s type veth peer name eth0 netns %d", device, tid))
	setUp(g.t, device, here...)
	g.in(work, func() { setUp(g.t, "eth0", there...) })
	return work
}

// in runs f in a neighbour's namespace.
func (g *gateway) in(where chan func(), f func()) {
	done := make(chan struct{})
	where <- func() { defer close(done); f() }
	<-done
}

// serveOn echoes on a port of the calling thread's namespace.
func serveOn(t *testing.T, network string, port int) {
	if network[:3] == "tcp" {
		listener, err := net.Listen(network, fmt.Sprint(":", port))
		if err != nil {
			t.Error(err)
			return
		}
		t.Cleanup(func() { listener.Close() })
		go echoStreams(listener)
		return
	}
	packets, err := net.ListenPacket(network, fmt.Sprint(":", port))
	if err != nil {
		t.Error(err)
		return
	}
	t.Cleanup(func() { packets.Close() })
	go echoPackets(packets)
}

// dial connects the client to a service.
func (g *gateway) dial(network string, wait time.Duration) (net.Conn, error) {
	to := map[string]string{"4": public4, "6": public6}[network[3:]]
	port := map[string]string{"tcp": "443", "udp": "53"}[network[:3]]
	var c net.Conn
	var err error
	g.in(g.client, func() { c, err = net.DialTimeout(network, net.JoinHostPort(to, port), wait) })
	if err == nil {
		g.t.Cleanup(func() { c.Close() })
	}
	return c, err
}

func (g *gateway) mustDial(network string) net.Conn {
	g.t.Helper()
	c, err := g.dial(network, patience)
	if err != nil {
		g.t.Fatalf("%s: %v", network, err)
	}
	return c
}

func stages(stage policy.Stage, selectors ...string) Desired {
	return Desired{Posture: policy.Posture{Notrack: tracked(stage, selectors...)}}
}

var networks = []string{"tcp4", "tcp6", "udp4", "udp6"}

// TestForwarded leaves forwarded services untracked: they work without an entry, connections from before go on, and
// go on when it ends. No inside address is ever seen outside.
func TestForwarded(t *testing.T) {
	g := newGateway(t, fmt.Sprintf(hostRules, "ct state invalid drop"))
	leaks := g.watchFor("10.0.0.0/8", "fd00::/8")
	table := open(t)
	var before, during []net.Conn
	for _, network := range networks {
		before = append(before, g.mustDial(network))
		mustEcho(t, before[len(before)-1])
	}
	apply(t, table, stages(policy.Watched, forwards...))
	for _, c := range before {
		mustEcho(t, c)
	}
	wantPassed(t, table, forwards)
	apply(t, table, stages(policy.Trial, forwards...))
	run(t, "conntrack -F")
	for _, network := range networks {
		during = append(during, g.mustDial(network))
		mustEcho(t, during[len(during)-1])
	}
	for _, c := range before {
		mustEcho(t, c)
	}
	wantEntries(t, outer4, 0)
	wantEntries(t, outer6, 0)
	wantPassed(t, table, forwards)
	ending, err := table.Ending(Desired{})
	if err != nil {
		t.Fatal(err)
	}
	for i, clients := range [][]netip.AddrPort{ending[selector(forwards[0])], ending[selector(forwards[2])]} {
		if len(clients) != 2 {
			t.Errorf("service %d: connections of %v are remembered, want 2", i, clients)
		}
	}
	apply(t, table, Desired{})
	for _, c := range append(before, during...) {
		mustEcho(t, c)
	}
	if list := leaks(); len(list) > 0 {
		t.Errorf("seen outside: %q", list)
	}
}

// wantPassed wants all that was counted to have passed.
func wantPassed(t *testing.T, table *Table, selectors []string) {
	t.Helper()
	for _, text := range selectors {
		w := work(t, table).Selectors[selector(text)]
		if w.Requests == 0 || w.Requests != w.Delivered || w.Replies == 0 || w.Replies != w.Sent || w.Besides != 0 {
			t.Errorf("%s: %+v, want all to pass", text, w)
		}
	}
}

// watchFor returns what lists the packets that come out of the gateway and have an address of one of the prefixes in
// them, be it in the packet that an ICMP error is about.
func (g *gateway) watchFor(prefixes ...string) func() []string {
	g.t.Helper()
	var fd int
	var err error
	g.in(g.client, func() {
		all := int(binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, unix.ETH_P_ALL)))
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, all)
	})
	if err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(func() { unix.Close(fd) })
	return func() (found []string) {
		buf := make([]byte, 1<<16)
		for {
			n, _, err := unix.Recvfrom(fd, buf, 0)
			if err != nil {
				return found
			}
			for _, addr := range addressesIn(buf[:n]) {
				for _, p := range prefixes {
					if prefix(p).Contains(addr) {
						found = append(found, addr.String())
					}
				}
			}
		}
	}
}

// addressesIn returns the addresses of a packet, and those of the one in an ICMP error.
func addressesIn(b []byte) (list []netip.Addr) {
	switch {
	case len(b) >= 20 && b[0]>>4 == 4:
		list = append(list, netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20])))
		if b[9] == unix.IPPROTO_ICMP && len(b) >= 28 && b[20] != 0 && b[20] != 8 {
			list = append(list, addressesIn(b[28:])...)
		}
	case len(b) >= 40 && b[0]>>4 == 6:
		list = append(list, netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40])))
		if b[6] == unix.IPPROTO_ICMPV6 && len(b) >= 48 && b[40] < 128 {
			list = append(list, addressesIn(b[48:])...)
		}
	}
	return list
}

// errorAbout is an ICMP error about a packet of a protocol between two IPv4 ends, with as much of it
// as RFC 792 asks for.
func errorAbout(kind, code, protocol byte, from, to netip.AddrPort) []byte {
	b := make([]byte, 8+20+8)
	b[0], b[1] = kind, code
	inner := b[8:]
	inner[0], inner[3], inner[8], inner[9] = 0x45, 40, 64, protocol
	source, destination := from.Addr().As4(), to.Addr().As4()
	copy(inner[12:], source[:])
	copy(inner[16:], destination[:])
	binary.BigEndian.PutUint16(inner[10:], checksum(inner[:20]))
	binary.BigEndian.PutUint16(inner[20:], from.Port())
	binary.BigEndian.PutUint16(inner[22:], to.Port())
	binary.BigEndian.PutUint16(b[2:], checksum(b))
	return b
}

// hears opens a raw socket for ICMP in a namespace; what it returns waits for an ICMP message and checks its sums.
func (g *gateway) hears(where chan func()) func() []byte {
	g.t.Helper()
	var c net.PacketConn
	var err error
	g.in(where, func() { c, err = net.ListenPacket("ip4:icmp", "0.0.0.0") })
	if err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(func() { c.Close() })
	return func() []byte {
		g.t.Helper()
		buf := make([]byte, 1500)
		c.SetDeadline(time.Now().Add(patience))
		n, _, err := c.ReadFrom(buf)
		if err != nil {
			g.t.Fatalf("no ICMP error: %v", err)
		}
		if checksum(buf[:n&^1]) != 0 || checksum(buf[8:28]) != 0 {
			g.t.Errorf("wrong checksums in %x", buf[:n])
		}
		return buf[:n]
	}
}

// about is the packet that an ICMP error is about.
func about(b []byte) string {
	from, to := netip.AddrFrom4([4]byte(b[20:24])), netip.AddrFrom4([4]byte(b[24:28]))
	return fmt.Sprintf("%s > %s", netip.AddrPortFrom(from, binary.BigEndian.Uint16(b[28:])),
		netip.AddrPortFrom(to, binary.BigEndian.Uint16(b[30:])))
}

// TestForwardedErrors: ICMP errors come to those whose packets they are about, as packets that they know.
func TestForwardedErrors(t *testing.T) {
	g := newGateway(t, fmt.Sprintf(hostRules, ""))
	table := open(t)
	apply(t, table, stages(policy.Trial, forwards...))
	leaks := g.watchFor("10.0.0.0/8")
	inner, outer := g.hears(g.server), g.hears(g.client)
	addr := netip.MustParseAddrPort
	client, service, inside := netip.MustParseAddr(outer4).As4(), netip.MustParseAddr(public4).As4(), netip.MustParseAddr(
		inside4).As4()
	for _, c := range []struct {
		name            string
		protocol        byte
		public, private string
	}{
		{"tcp", unix.IPPROTO_TCP, "203.0.113.1:443", "10.0.0.2:8443"},
		{"udp", unix.IPPROTO_UDP, "203.0.113.1:53", "10.0.0.2:5353"},
	} {
		there := addr("203.0.113.2:40000")
		g.in(g.client, func() {
			told := errorAbout(3, 4, c.protocol, addr(c.public), there)
			if err := sendRaw(unix.IPPROTO_ICMP, client, service, told); err != nil {
				t.Error(err)
			}
		})
		if got, want := about(inner()), c.private+" > 203.0.113.2:40000"; got != want {
			t.Errorf("%s: the inside host hears about %s, want %s", c.name, got, want)
		}
		g.in(g.server, func() {
			told := errorAbout(3, 4, c.protocol, there, addr(c.private))
			if err := sendRaw(unix.IPPROTO_ICMP, inside, client, told); err != nil {
				t.Error(err)
			}
		})
		if got, want := about(outer()), "203.0.113.2:40000 > "+c.public; got != want {
			t.Errorf("%s: the client hears about %s, want %s", c.name, got, want)
		}
	}
	if list := leaks(); len(list) > 0 {
		t.Errorf("seen outside: %q", list)
	}
	for _, text := range forwards[:2] {
		if w := work(t, table).Selectors[selector(text)]; w.Errors != 1 || w.ErrorsPassed != 1 {
			t.Errorf("%s: %+v, want one error to pass", text, w)
		}
	}
	wantEntries(t, outer4, 0)
}

// TestForwardedSmallerLink: the way to the inside host takes smaller packets than the client sends. The gateway says so
// itself, about a packet that the client knows, and all of it arrives.
func TestForwardedSmallerLink(t *testing.T) {
	g := newGateway(t, fmt.Sprintf(hostRules, ""))
	table := open(t)
	apply(t, table, stages(policy.Trial, forwards...))
	run(t, "ip link set lan0 mtu 1300")
	for _, network := range []string{"tcp4", "tcp6"} {
		c := g.mustDial(network)
		c.SetDeadline(time.Now().Add(patience))
		go c.Write(make([]byte, 64<<10))
		if n, err := io.ReadFull(c, make([]byte, 64<<10)); err != nil {
			t.Errorf("%s: %d bytes come back: %v", network, n, err)
		}
	}
}

// TestForwardedRefused: rules that know translated packets by their state let none of the untracked ones through, and a
// reset that they answer with reaches nobody. Packets that come to the inside host by its own address are seen.
func TestForwardedRefused(t *testing.T) {
	g := newGateway(t, fmt.Sprintf(hostRules, "ct state established accept\nct status dnat accept\n"+
		"meta l4proto tcp reject with tcp reset\nreject"))
	table := open(t)
	c := g.mustDial("tcp4")
	mustEcho(t, c)
	leaks := g.watchFor("10.0.0.0/8")
	apply(t, table, stages(policy.Trial, forwards[0], forwards[1]))
	if err := echoed(c, refuses); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("on trial: %v, want silence", err)
	}
	if w := work(t, table).Selectors[selector(forwards[0])]; w.Requests == 0 || w.Delivered != 0 {
		t.Errorf("%+v, want requests and none delivered", w)
	}
	apply(t, table, Desired{})
	c.SetDeadline(time.Now().Add(patience))
	if _, err := io.ReadFull(c, make([]byte, 5)); err != nil {
		t.Errorf("taken back: %v", err)
	}
	if list := leaks(); len(list) > 0 {
		t.Errorf("seen outside: %q", list)
	}
}

// TestForwardedBesides counts what comes to the inside host's port by its own address.
func TestForwardedBesides(t *testing.T) {
	g := newGateway(t, fmt.Sprintf(hostRules, ""))
	g.insideOut = true
	table := open(t)
	apply(t, table, stages(policy.Watched, forwards...))
	mustEcho(t, g.mustDial("tcp4"))
	g.in(g.client, func() { run(t, "ip route add 10.0.0.0/24 via "+public4) })
	var c net.Conn
	var err error
	g.in(g.client, func() { c, err = net.DialTimeout("tcp4", inside4+":8443", patience) })
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	mustEcho(t, c)
	if w := work(t, table).Selectors[selector(forwards[0])]; w.Besides == 0 {
		t.Errorf("%+v, want packets that came some other way", w)
	}
}

// TestForwardedBesideUntracked: what goes to the inside host's port directly from another of this host's networks, and
// is left untracked by the host itself, is not translated.
func TestForwardedBesideUntracked(t *testing.T) {
	g := newGateway(t, fmt.Sprintf(hostRules, "")+`table inet raw {
	chain prerouting {
		type filter hook prerouting priority raw
		iifname "lan1" ip daddr 10.0.0.0/24 notrack
		iifname "lan0" ip daddr 10.1.0.0/24 notrack
	}
}
`)
	other := g.neighbour("lan1", []string{"10.1.0.1/24"}, []string{"10.1.0.2/24"})
	g.in(other, func() { run(t, "ip route add default via 10.1.0.1") })
	apply(t, open(t), stages(policy.Freed, forwards...))
	mustEcho(t, g.mustDial("tcp4"))
	for network, port := range map[string]string{"tcp4": "8443", "udp4": "5353"} {
		var c net.Conn
		var err error
		g.in(other, func() { c, err = net.DialTimeout(network, net.JoinHostPort(inside4, port), patience) })
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		mustEcho(t, c)
	}
	wantEntries(t, "10.1.0.2", 0)
}

// TestForwardedWithoutChecksum: UDP packets of whom nobody computed a checksum still have none behind the gateway.
func TestForwardedWithoutChecksum(t *testing.T) {
	g := newGateway(t, fmt.Sprintf(hostRules, ""))
	apply(t, open(t), stages(policy.Trial, forwards...))
	var answers net.PacketConn
	var err error
	g.in(g.client, func() {
		if answers, err = net.ListenPacket("udp4", outer4+":40000"); err != nil {
			return
		}
		datagram := append(binary.BigEndian.AppendUint16(nil, 40000), 0, 53, 0, 8+6, 0, 0)
		err = sendRaw(unix.IPPROTO_UDP, netip.MustParseAddr(outer4).As4(), netip.MustParseAddr(public4).As4(),
			append(datagram, "hello!"...))
	})
	if err != nil {
		t.Fatal(err)
	}
	defer answers.Close()
	answers.SetDeadline(time.Now().Add(patience))
	buf := make([]byte, 16)
	n, from, err := answers.ReadFrom(buf)
	if err != nil || string(buf[:n]) != "hello!" || from.String() != "203.0.113.1:53" {
		t.Errorf("%q from %v (%v), want an echo from 203.0.113.1:53", buf[:n], from, err)
	}
}

// TestRouted leaves a service untracked that is merely routed to an inside host, of some sources.
func TestRouted(t *testing.T) {
	g := newGateway(t, "table inet host {\n chain forward {\n type filter hook forward priority filter\n"+
		" ct state invalid drop\n }\n}\n")
	g.insideOut = true
	table := open(t)
	g.in(g.client, func() {
		run(t, "ip route add 10.0.0.0/24 via "+public4)
		run(t, "ip route add fd00::/64 via "+public6)
	})
	name := "tcp/8443 with 203.0.113.2/32 at 10.0.0.2/32 to 10.0.0.2:8443 by wan0"
	other := "tcp/8443 with 2001:db8:1::3/128 at fd00::2/128 to [fd00::2]:8443 by wan0"
	apply(t, table, stages(policy.Freed, name, other))
	for _, to := range []string{inside4 + ":8443", "[" + inside6 + "]:8443"} {
		var c net.Conn
		var err error
		g.in(g.client, func() { c, err = net.DialTimeout("tcp", to, patience) })
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		mustEcho(t, c)
	}
	wantEntries(t, outer4, 0)
	wantEntries(t, outer6, 1)
	wantPassed(t, table, []string{name})
}

// TestForwardedErrors6 is the same over IPv6 for the errors that tell the inside host to send smaller packets; the
// kernel takes none whose checksum is wrong.
func TestForwardedErrors6(t *testing.T) {
	g := newGateway(t, fmt.Sprintf(hostRules, ""))
	apply(t, open(t), stages(policy.Trial, forwards...))
	var c, sender net.PacketConn
	var err error
	g.in(g.server, func() { c, err = net.ListenPacket("ip6:ipv6-icmp", "::") })
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	const tooBig = 2
	b := make([]byte, 8+40+8)
	b[0], b[6], b[7] = tooBig, 1300>>8, 1300&0xff
	inner := b[8:]
	inner[0], inner[5], inner[6], inner[7] = 0x60, 8, unix.IPPROTO_TCP, 64
	copy(inner[8:], netip.MustParseAddr(public6).AsSlice())
	copy(inner[24:], netip.MustParseAddr(outer6).AsSlice())
	binary.BigEndian.PutUint16(inner[40:], 443)
	binary.BigEndian.PutUint16(inner[42:], 40000)
	g.in(g.client, func() {
		if sender, err = net.ListenPacket("ip6:ipv6-icmp", outer6); err == nil {
			_, err = sender.WriteTo(b, &net.IPAddr{IP: net.ParseIP(public6)})
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	defer sender.Close()
	c.SetDeadline(time.Now().Add(patience))
	buf := make([]byte, 1500)
	for buf[0] != tooBig {
		if _, _, err = c.ReadFrom(buf); err != nil {
			t.Fatalf("no ICMP error: %v", err)
		}
	}
	from, port := netip.AddrFrom16([16]byte(buf[16:32])), binary.BigEndian.Uint16(buf[48:])
	if from.String() != inside6 || port != 8443 {
		t.Errorf("the inside host hears about a packet from %s port %d, want %s port 8443", from, port, inside6)
	}
}

// TestForwardedOwnConnections: what the gateway itself asks of the inside host stays tracked, and may be reset.
func TestForwardedOwnConnections(t *testing.T) {
	g := newGateway(t, fmt.Sprintf(hostRules, ""))
	apply(t, open(t), stages(policy.Trial, "tcp/444 at 203.0.113.1/32 to 10.0.0.2:8444 by wan0"))
	var listener net.Listener
	var err error
	g.in(g.server, func() { listener, err = net.Listen("tcp4", ":8444") })
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	c, err := net.DialTimeout("tcp4", inside4+":8444", patience)
	if err != nil {
		t.Fatal(err)
	}
	server, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	wantEntries(t, "10.0.0.1", 1)
	c.(*net.TCPConn).SetLinger(0)
	c.Close()
	server.SetDeadline(time.Now().Add(patience))
	if _, err := server.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the inside host reads %v, want a reset", err)
	}
}

// TestForwardedPlainChecksums: where no device computes checksums, so that each packet carries its own, they are right
// behind the gateway as well, in small packets and in large ones.
func TestForwardedPlainChecksums(t *testing.T) {
	g := newGateway(t, fmt.Sprintf(hostRules, "ct state invalid drop"))
	apply(t, open(t), stages(policy.Freed, forwards...))
	g.in(g.client, func() { plainChecksums(t, "eth0") })
	g.in(g.server, func() { plainChecksums(t, "eth0") })
	for _, network := range networks {
		c := g.mustDial(network)
		mustEcho(t, c)
		if network[:3] == "udp" {
			continue
		}
		c.SetDeadline(time.Now().Add(patience))
		go c.Write(make([]byte, 256<<10))
		if n, err := io.ReadFull(c, make([]byte, 256<<10)); err != nil {
			t.Errorf("%s: %d bytes come back: %v", network, n, err)
		}
	}
	wantEntries(t, outer4, 0)
}

// plainChecksums has the kernel compute checksums of what leaves by a device itself: ETHTOOL_STXCSUM of ethtool(8), see
// include/uapi/linux/ethtool.h.
func plainChecksums(t *testing.T, device string) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Error(err)
		return
	}
	defer unix.Close(fd)
	value := struct{ command, data uint32 }{unix.ETHTOOL_STXCSUM, 0}
	request := struct {
		name  [unix.IFNAMSIZ]byte
		value unsafe.Pointer
		_     [16]byte
	}{value: unsafe.Pointer(&value)}
	copy(request.name[:], device)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&request)))
	if errno != 0 {
		t.Errorf("checksums of %s: %v", device, errno)
	}
}
