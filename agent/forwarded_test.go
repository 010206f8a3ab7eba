package agent

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"ctguard/agent/conntrack/conntracktest"
	"ctguard/nft"
	"ctguard/policy"
)

// Rules of a gateway between two peers: the inside host is the second one. What is not for the service is reset, so
// that a packet which conntrack does not translate ends its connection.
const gatewayRules = `table inet gate {
	chain nats {
		type nat hook prerouting priority dstnat
		iifname here0 ip daddr 192.0.2.1 tcp dport 443 dnat ip to 10.0.0.2:8443
		iifname here0 ip daddr 192.0.2.1 udp dport 53 dnat ip to 10.0.0.2:5353
	}
	chain post {
		type nat hook postrouting priority srcnat
		oifname here0 masquerade
	}
	chain watch {
		type filter hook forward priority filter
		ct state invalid counter
	}
}
`

const forwardedService = "tcp/443 at 192.0.2.1/32 on here0 to 10.0.0.2:8443 by here0"

// gate is a gateway in the test's own namespace.
type gate struct {
	outer, inner *conntracktest.Peer
	live         *live
	table        *nft.Table
	listener     net.Listener
}

func newGate(t *testing.T) *gate {
	t.Helper()
	conntracktest.Own(t)
	g := new(gate)
	var err error
	if g.inner, err = conntracktest.NewPeer(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(g.inner.Close)
	setUp := []string{"ip link set here0 down", "ip address flush dev here0", "ip link set here0 name lan0",
		"ip address add 10.0.0.1/24 dev lan0", "ip link set lan0 up"}
	if err := conntracktest.Run(setUp...); err != nil {
		t.Fatal(err)
	}
	g.inner.Do(func() {
		err = conntracktest.Run("ip address flush dev there0", "ip address add 10.0.0.2/24 dev there0",
			"ip route add default via 10.0.0.1")
		if err == nil {
			g.listener, err = net.Listen("tcp", "10.0.0.2:8443")
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { g.listener.Close() })
	if g.outer, err = conntracktest.NewPeer(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(g.outer.Close)
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o600); err != nil {
		t.Fatal(err)
	}
	g.live, g.table = liveUnder(t, gatewayRules, nil)
	return g
}

// connect opens a connection to the service and returns the client's end and the inside host's.
func (g *gate) connect(t *testing.T) [2]net.Conn {
	t.Helper()
	var client net.Conn
	var err error
	g.outer.Do(func() { client, err = net.DialTimeout("tcp", "192.0.2.1:443", 5*time.Second) })
	if err != nil {
		t.Fatal(err)
	}
	server, err := g.listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close(); server.Close() })
	return [2]net.Conn{client, server}
}

// desire brings the rules to a stage of the service.
func (g *gate) desire(t *testing.T, stage policy.Stage) {
	t.Helper()
	d := nft.Desired{}
	if stage > policy.Watched {
		d.Posture.Notrack = []policy.Untracked{{Selector: selectorsOf(t, forwardedService)[0], Stage: stage}}
	}
	if err := g.live.rules(d, time.Now()); err != nil {
		t.Fatal(err)
	}
}

// say sends a word one way.
func say(from, to net.Conn) error {
	deadline := time.Now().Add(5 * time.Second)
	if err := errors.Join(from.SetDeadline(deadline), to.SetDeadline(deadline)); err != nil {
		return err
	}
	if _, err := from.Write([]byte("word")); err != nil {
		return err
	}
	_, err := io.ReadFull(to, make([]byte, 4))
	return err
}

// A hundred connections to an inside host, half of which wait for the inside host to speak, go on through every way
// in and out, those that were opened before and those opened while the service lived untracked.
func TestForwardedConnectionsGoOn(t *testing.T) {
	g := newGate(t)
	var pipes [][2]net.Conn
	more := func() {
		for range 50 {
			p := g.connect(t)
			pipes = append(pipes, p)
			if err := errors.Join(say(p[0], p[1]), say(p[1], p[0])); err != nil {
				t.Fatal(err)
			}
		}
	}
	more()
	g.desire(t, policy.Trial)
	if n, err := g.live.loosen(t.Context(), []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:443")}); n != 50 ||
		err != nil {
		t.Errorf("%d entries loosened (%v), want 50", n, err)
	}
	more()
	for i, p := range pipes[:10] { // more than a window goes unseen
		if err := errors.Join(carry(p[0], p[1]), carry(p[1], p[0])); err != nil {
			t.Fatalf("connection %d, untracked: %v", i, err)
		}
	}
	g.desire(t, policy.Watched)
	wantAll(t, "tracked again", pipes)
	g.desire(t, policy.Freed)
	wantAll(t, "untracked again", pipes)
	g.desire(t, policy.Watched)
	wantAll(t, "tracked for good", pipes)
}

// wantAll has every connection speak, of every second one the inside host first.
func wantAll(t *testing.T, when string, pipes [][2]net.Conn) {
	t.Helper()
	for i, p := range pipes {
		first, second := p[0], p[1]
		if i%2 == 1 {
			first, second = second, first
		}
		if err := errors.Join(say(first, second), say(second, first)); err != nil {
			t.Errorf("connection %d, %s: %v", i, when, err)
		}
	}
}

// When the table goes at once, as when the process is killed, a connection whose client speaks first goes on, also if
// it had an entry before and more than a window went by unseen.
func TestForwardedKilled(t *testing.T) {
	g := newGate(t)
	old := g.connect(t)
	if err := errors.Join(say(old[0], old[1]), say(old[1], old[0])); err != nil {
		t.Fatal(err)
	}
	g.desire(t, policy.Trial)
	if _, err := g.live.loosen(t.Context(), []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:443")}); err != nil {
		t.Fatal(err)
	}
	young := g.connect(t)
	for _, p := range [][2]net.Conn{old, young} {
		if err := errors.Join(carry(p[0], p[1]), carry(p[1], p[0])); err != nil {
			t.Fatal(err)
		}
	}
	g.table.LetGo() // the socket is closed, and the kernel removes the table
	for name, p := range map[string][2]net.Conn{"with an entry": old, "without one": young} {
		if err := errors.Join(say(p[0], p[1]), say(p[1], p[0])); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A connection that ended while it was followed is not given an entry.
func TestForwardedEnded(t *testing.T) {
	g := newGate(t)
	g.desire(t, policy.Trial)
	stays, goes := g.connect(t), g.connect(t)
	for _, p := range [][2]net.Conn{stays, goes} {
		if err := errors.Join(say(p[0], p[1]), say(p[1], p[0])); err != nil {
			t.Fatal(err)
		}
	}
	goes[0].Close()
	if _, err := goes[1].Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Fatalf("the inside host reads %v, want the end", err)
	}
	goes[1].Close()
	ending, err := g.table.Ending(nft.Desired{})
	if err != nil {
		t.Fatal(err)
	}
	var clients []string
	for _, c := range ending[selectorsOf(t, forwardedService)[0]] {
		clients = append(clients, c.String())
	}
	if got, want := strings.Join(clients, ", "), fmt.Sprint(stays[0].LocalAddr()); got != want {
		t.Errorf("remembered %s, want %s", got, want)
	}
}

// A UDP flow whose inside host speaks first when the service is tracked again goes on with the port that the client
// knows. Who has sent once only is given no entry.
func TestForwardedDatagrams(t *testing.T) {
	g := newGate(t)
	var server, client, stranger net.PacketConn
	var err error
	open := func(peer *conntracktest.Peer, c *net.PacketConn, addr string) {
		peer.Do(func() { *c, err = net.ListenPacket("udp4", addr) })
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { (*c).Close() })
		if err := (*c).SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
	}
	open(g.inner, &server, "10.0.0.2:5353")
	open(g.outer, &client, "192.0.2.2:4000")
	open(g.outer, &stranger, "192.0.2.2:4001")
	service := net.UDPAddrFromAddrPort(netip.MustParseAddrPort("192.0.2.1:53"))
	send := func(from, to net.PacketConn, addr net.Addr) (seen net.Addr) {
		t.Helper()
		if _, err := from.WriteTo([]byte("word"), addr); err != nil {
			t.Fatal(err)
		}
		_, seen, err := to.ReadFrom(make([]byte, 8))
		if err != nil {
			t.Fatal(err)
		}
		return seen
	}
	d := nft.Desired{Posture: policy.Posture{Notrack: []policy.Untracked{{Stage: policy.Freed,
		Selector: selectorsOf(t, "udp/53 at 192.0.2.1/32 on here0 to 10.0.0.2:5353 by here0")[0]}}}}
	if err := g.live.rules(d, time.Now()); err != nil {
		t.Fatal(err)
	}
	send(stranger, server, service)
	for range 2 {
		send(client, server, service)
	}
	if err := g.live.rules(nft.Desired{}, time.Now()); err != nil {
		t.Fatal(err)
	}
	if from := send(server, client, net.UDPAddrFromAddrPort(netip.MustParseAddrPort("192.0.2.2:4000"))); from.String() !=
		service.String() {
		t.Errorf("the client is answered from %s, want %s", from, service)
	}
	if from := send(client, server, service); from.String() != "192.0.2.2:4000" {
		t.Errorf("the inside host is asked from %s", from)
	}
	if out, err := exec.Command("conntrack", "-L", "-p", "udp").CombinedOutput(); err != nil ||
		strings.Contains(string(out), "sport=4001") {
		t.Errorf("entries (%v):\n%s", err, out)
	}
}
