package nft

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

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
}

func newGateway(t *testing.T, rules string) *gateway {
	t.Helper()
	inNewNetNS(t)
	g := &gateway{t: t}
	g.client = g.neighbour("wan0", []string{public4 + "/24", public6 + "/64"}, []string{outer4 + "/24", outer6 + "/64"})
	g.server = g.neighbour("lan0", []string{"10.0.0.1/24", "fd00::1/64"}, []string{inside4 + "/24", inside6 + "/64"})
	run(t, "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 net.ipv4.conf.all.rp_filter=1")
	g.in(g.server, func() { run(t, "ip route add default via 10.0.0.1"); run(t, "ip route add default via fd00::1") })
	feed(t, rules)
	for _, network := range []string{"tcp4", "tcp6", "udp4", "udp6"} {
		g.in(g.server, func() { serveOn(t, network, map[string]int{"tcp": 8443, "udp": 5353}[network[:3]]) })
	}
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
