package conntrack

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ctguard/agent/conntrack/conntracktest"
)

// masquerade is a gateway in the test's own namespace, between hosts inside and a server outside.
type masquerade struct {
	table           *Table
	inside, outside *conntracktest.Peer
	server          net.Listener
}

func newMasquerade(t *testing.T) *masquerade {
	t.Helper()
	conntracktest.Privileged(t, "nft", "ip")
	m := &masquerade{table: openTable(t)}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	var err error
	m.inside, err = conntracktest.NewPeer()
	must(err)
	t.Cleanup(m.inside.Close)
	must(conntracktest.Run("ip link set here0 down", "ip address flush dev here0", "ip link set here0 name lan0",
		"ip address add 10.0.0.1/24 dev lan0", "ip link set lan0 up"))
	m.inside.Do(func() {
		err = conntracktest.Run("ip address flush dev there0", "ip address add 10.0.0.2/24 dev there0",
			"ip address add 10.0.0.3/24 dev there0", "ip route add default via 10.0.0.1")
	})
	must(err)
	m.outside, err = conntracktest.NewPeer()
	must(err)
	t.Cleanup(m.outside.Close)
	m.outside.Do(func() { m.server, err = net.Listen("tcp", conntracktest.There4.String()+":80") })
	must(err)
	t.Cleanup(func() { m.server.Close() })
	must(os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o600))
	nft := exec.Command("nft", "-f", "-")
	nft.Stdin = strings.NewReader("table ip gate { chain post { type nat hook postrouting priority srcnat\n" +
		"oifname here0 masquerade\n}\n}\n")
	if out, err := nft.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return m
}

// exchange opens a connection from an inside address and port, closes it from one end and then the other, and says
// how many SYNs it took beyond the first.
func (m *masquerade) exchange(t *testing.T, from string, port int, serverFirst bool) (again uint32) {
	t.Helper()
	dialer := net.Dialer{Timeout: 10 * time.Second, LocalAddr: &net.TCPAddr{IP: net.ParseIP(from), Port: port}}
	var client net.Conn
	var err error
	m.inside.Do(func() {
		client, err = dialer.DialContext(t.Context(), "tcp", conntracktest.There4.String()+":80")
	})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	server, err := m.server.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	again = retransmitted(t, client)
	ends := [2]net.Conn{client, server}
	if serverFirst {
		ends = [2]net.Conn{server, client}
	}
	for i, end := range ends {
		if err := end.(*net.TCPConn).CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if n, err := io.Copy(io.Discard, ends[1-i]); n != 0 || err != nil {
			t.Fatal(n, err) // the other end has seen it
		}
	}
	return again
}

// retransmitted returns how many segments of a connection were sent again.
func retransmitted(t *testing.T, c net.Conn) uint32 {
	t.Helper()
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var n uint32
	var failed error
	err = raw.Control(func(fd uintptr) {
		var info *unix.TCPInfo
		if info, failed = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); failed == nil {
			n = info.Total_retrans
		}
	})
	if err = errors.Join(err, failed); err != nil {
		t.Fatal(err)
	}
	return n
}

// A source port that NAT chose stays taken while the far end waits in TIME_WAIT: who gets it before is answered for the
// old connection, and stalls. Where the near end closed first, nobody waits out there.
func TestRetireKeepsPorts(t *testing.T) {
	m := newMasquerade(t)
	const ports = 12
	for port := range ports {
		m.exchange(t, "10.0.0.2", 40000+port, true)
		m.exchange(t, "10.0.0.2", 50000+port, false)
	}
	table := m.table
	retire := Retirement{Timeouts: map[string]int{"nf_conntrack_tcp_timeout_time_wait": 120},
		Silent: time.Second, Ports: time.Minute}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for retired := 0; retired < ports; {
		n, err := table.Retire(ctx, retire) // once they have been silent for a second
		if err != nil {
			t.Fatal(err)
		}
		retired += n
	}
	for left := ports + 1; left > ports; { // the last second passes
		if err := ctx.Err(); err != nil {
			t.Fatal(err)
		}
		left = len(dump(t, table))
	}
	for _, e := range dump(t, table) {
		if e.orig.srcPort >= 50000 {
			t.Errorf("port %d stays, though the near end closed first", e.orig.srcPort)
		}
	}
	for port := range ports {
		if again := m.exchange(t, "10.0.0.3", 40000+port, true); again != 0 {
			t.Errorf("port %d: the SYN was sent again %d times", 40000+port, again)
		}
	}
}
