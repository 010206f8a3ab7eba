package survey

import (
	"io"
	"net"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"ctguard/agent/conntrack/conntracktest"
	"ctguard/policy"

	"github.com/vishvananda/netlink"
)

// enter moves the test into a network namespace of its own, with two interfaces that are up:
// loopback and one with addresses and a route to the world.
func enter(t *testing.T, programs ...string) {
	t.Helper()
	conntracktest.Own(t, append(programs, "ip")...)
	run(t, "ip link set lo up",
		"ip link add world type veth peer name away",
		"ip link set world up",
		"ip link set away up")
	// An IPv6 address answers once the kernel has seen the carrier, which it looks at in its own time.
	deadline := time.Now().Add(10 * time.Second)
	for l, err := netlink.LinkByName("world"); err != nil || l.Attrs().OperState != netlink.OperUp; l, err =
		netlink.LinkByName("world") {
		if time.Now().After(deadline) {
			t.Fatalf("the link does not come up: %v", err)
		}
		time.Sleep(time.Millisecond)
	}
	run(t, "ip addr add 198.51.100.1/24 dev world",
		"ip addr add 2001:db8:1::1/64 dev world nodad",
		"ip route add default via 198.51.100.254",
		"ip route add default via 2001:db8:1::ffff")
	settle(t)
}

func settle(t *testing.T) {
	t.Helper()
	if err := conntracktest.Settle(); err != nil {
		t.Fatal(err)
	}
}

// run runs command lines without shell syntax.
func run(t *testing.T, lines ...string) {
	t.Helper()
	for _, line := range lines {
		words := strings.Fields(line)
		if out, err := exec.Command(words[0], words[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", line, err, out)
		}
	}
}

// listen opens a socket until the test ends: "tcp ADDR" or "udp ADDR".
func listen(t *testing.T, network, address string) {
	t.Helper()
	var socket io.Closer
	var err error
	if strings.HasPrefix(network, "udp") {
		socket, err = net.ListenPacket(network, address)
	} else {
		socket, err = net.Listen(network, address)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = socket.Close() })
}

// What listens towards the world is found; what is on loopback only or asks questions itself is not.
func TestServices(t *testing.T) {
	enter(t)
	h := New("/")
	none := []policy.Selector{{Protocol: policy.ICMP}, {Group: true}}
	if got, err := h.Services(); err != nil || !slices.Equal(got, none) {
		t.Errorf("an empty host: %v (%v), want %v", got, err, none)
	}
	listen(t, "tcp", ":8080")
	listen(t, "tcp4", "198.51.100.1:443")
	listen(t, "tcp6", "[2001:db8:1::1]:443") // the same service
	listen(t, "tcp", "127.0.0.1:5432")
	listen(t, "tcp", "[::1]:5432")
	listen(t, "udp", ":53")
	listen(t, "udp", "127.0.0.1:323")
	listen(t, "udp4", "198.51.100.1:0") // an ephemeral port: it asks, it does not answer
	listen(t, "tcp4", "198.51.100.1:40000")
	dial(t, "udp", "198.51.100.1:53")

	want := append([]policy.Selector{
		{Protocol: policy.TCP, Port: 443}, {Protocol: policy.TCP, Port: 8080}, {Protocol: policy.TCP, Port: 40000},
		{Protocol: policy.UDP, Port: 53},
	}, none...)
	got, err := h.Services()
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(got, want) {
		t.Errorf("services %v, want %v", got, want)
	}
}

// dial opens a connection until the test ends.
func dial(t *testing.T, network, address string) net.Conn {
	t.Helper()
	// No fallback between the families: it dials on other threads, which are in another namespace.
	c, err := (&net.Dialer{FallbackDelay: -1}).Dial(network, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// Only established connections to the port that was asked for.
func TestConnections(t *testing.T) {
	enter(t)
	h := New("/")
	listen(t, "tcp", ":22")
	listen(t, "tcp", ":80")
	ssh4 := dial(t, "tcp4", "198.51.100.1:22")
	ssh6 := dial(t, "tcp6", "[2001:db8:1::1]:22")
	dial(t, "tcp4", "198.51.100.1:80")

	for _, c := range []struct {
		port uint16
		want []string
	}{
		{22, []string{ssh4.LocalAddr().String(), ssh6.LocalAddr().String()}},
		{23, nil},
	} {
		list, err := h.managing(c.port, nil)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, connection := range list {
			got = append(got, connection.Remote.String())
			if connection.Local.Port() != c.port {
				t.Errorf("port %d: %v is a connection to another", c.port, connection)
			}
		}
		slices.Sort(got)
		slices.Sort(c.want)
		if !slices.Equal(got, c.want) {
			t.Errorf("port %d: peers %v, want %v", c.port, got, c.want)
		}
	}
}

func TestAddresses(t *testing.T) {
	enter(t)
	h := New("/")
	own, err := h.Own()
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"127.0.0.1", "::1", "198.51.100.1", "2001:db8:1::1"} {
		if !slices.Contains(own, netip.MustParseAddr(text)) {
			t.Errorf("%s is not among the own addresses %v", text, own)
		}
	}
	if diff := cmp.Diff([]string{"198.51.100.254", "2001:db8:1::ffff"}, texts(h.Gateways())); diff != "" {
		t.Errorf("gateways (-want +got):\n%s", diff)
	}
	run(t, "ip route del default", "ip -6 route del default")
	if got := h.Gateways(); len(got) > 0 {
		t.Errorf("gateways %v without a route", got)
	}
}

// The counters of the thread's own namespace, not of the process's first thread.
func TestCountersOfThisNamespace(t *testing.T) {
	enter(t)
	h := New("/")
	before, err := h.Arrivals()
	if err != nil || before != (policy.Arrivals{}) {
		t.Errorf("a new namespace has seen %+v (%v)", before, err)
	}
	if n, err := h.Sockets(); err != nil || n != 0 {
		t.Errorf("a new namespace has %d sockets (%v)", n, err)
	}
	listen(t, "tcp", ":80")
	listen(t, "udp", ":53")
	dial(t, "tcp4", "198.51.100.1:80")
	if _, err := dial(t, "udp4", "198.51.100.1:53").Write([]byte("?")); err != nil {
		t.Fatal(err)
	}
	after, err := h.Arrivals()
	if want := (policy.Arrivals{TCPOpens: 1, UDPDatagrams: 1}); err != nil || after.TCPOpens != want.TCPOpens {
		t.Errorf("arrivals %+v (%v), want %+v", after, err, want)
	}
	if n, err := h.Sockets(); err != nil || n < 2 {
		t.Errorf("%d sockets (%v), want at least two", n, err)
	}
}
