package agent

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"ctguard/agent/conntrack"
	"ctguard/agent/conntrack/conntracktest"
	"ctguard/agent/survey"
	"ctguard/nft"
	"ctguard/policy"
	"github.com/google/go-cmp/cmp"
)

func selectorsOf(t *testing.T, texts ...string) (list []policy.Selector) {
	t.Helper()
	for _, text := range texts {
		s, err := policy.ParseSelector(text)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, s)
	}
	return list
}

// A connection is a selector's by its port, its addresses and who made it.
func TestFlowsOf(t *testing.T) {
	live := func(local, remote string, outgoing bool) survey.Live {
		return survey.Live{Connection: survey.Connection{Local: netip.MustParseAddrPort(local),
			Remote: netip.MustParseAddrPort(remote)}, Outgoing: outgoing}
	}
	found := []survey.Live{
		live("198.51.100.1:80", "192.0.2.1:4000", false),
		live("198.51.100.1:8080", "192.0.2.2:4000", true), // its listener has ended
		live("198.51.100.2:40000", "203.0.113.1:443", true),
		live("[2001:db8::1]:80", "[2001:db8::2]:4000", false),
		live("127.0.0.1:80", "127.0.0.1:4000", false),
	}
	for _, c := range []struct{ selectors, want string }{
		{"tcp/80", "in :80, in :80"},
		{"tcp/80 at 198.51.100.0/24", "in :80"},
		{"tcp/80 at 198.51.100.2/32", ""},
		{"tcp/80 with 2001:db8::/64 at 2001:db8::1/128", "in :80"},
		{"tcp/80 on eth0", "in :80, in :80"},
		{"tcp/81-8080", "in :8080"},
		{"tcp", "in :80, out :8080, out :40000, in :80"},
		{"tcp with 203.0.113.0/24", "out :40000"},
		{"all", "in :80, out :8080, out :40000, in :80"},
		{"all, tcp/8080", "in :80, in :8080, out :40000, in :80"},
	} {
		var got []string
		for _, f := range flowsOf(found, selectorsOf(t, strings.Split(c.selectors, ", ")...)) {
			way := "in"
			if f.Outgoing {
				way = "out"
			}
			got = append(got, fmt.Sprintf("%s :%d", way, f.Local.Port()))
		}
		if diff := cmp.Diff(c.want, strings.Join(got, ", ")); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.selectors, diff)
		}
	}
}

// The ports that sockets are asked for: those of ranges too, and all where there is no port.
func TestPortsOf(t *testing.T) {
	for text, want := range map[string]int{"tcp/80": 1, "tcp/80, tcp/80 on eth0, tcp/90-99": 11, "tcp/65530-65535": 6,
		"tcp/80, tcp": 1, "all": 1} {
		got := portsOf(selectorsOf(t, strings.Split(text, ", ")...))
		if whole := text == "all" || text == "tcp/80, tcp"; len(got) != want || got[0] != whole {
			t.Errorf("%s: %d ports, all: %v", text, len(got), got[0])
		}
	}
}

// strictRules let nothing pass that conntrack can't place, except what is untracked.
const strictRules = `table inet strict {
	chain in {
		type filter hook input priority filter; policy drop;
		iif lo accept
		ct state invalid drop
		ct state established,untracked accept
	}
	chain out {
		type filter hook output priority filter; policy drop;
		oif lo accept
		ct state established,untracked accept
	}
}
`

// liveUnder loads the host's rules in the test's own namespace and returns what changes that namespace, and its table
// inet ctguard.
func liveUnder(t *testing.T, hostRules string, c connections) (*live, *nft.Table) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "rules")
	if err := errors.Join(os.WriteFile(file, []byte(hostRules), 0o600), conntracktest.Run("nft -f "+file)); err != nil {
		t.Fatal(err)
	}
	entries, err := conntrack.Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { entries.Close() })
	table, err := nft.Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { table.Close() })
	return newLive(table, nil, entries, c), table
}

// On a host where everything lived untracked, connections that others opened, those that it opened itself
// and those with itself go on when tracking begins again, each in the direction in which it was opened.
func TestAdoptAll(t *testing.T) {
	conntracktest.Own(t)
	peer, err := conntracktest.NewPeer()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(peer.Close)
	l, _ := liveUnder(t, strictRules, survey.New("/").Established)
	if err := os.WriteFile("/proc/sys/net/netfilter/nf_conntrack_tcp_loose", []byte("0"), 0o600); err != nil {
		t.Fatal(err)
	}
	all := selectorsOf(t, "all")
	if err := l.rules(nft.Desired{Posture: policy.Posture{Notrack: []policy.Untracked{{Selector: all[0],
		Stage: policy.Freed}}}}, time.Now()); err != nil {
		t.Fatal(err)
	}

	here := func(f func()) { f() }
	pipes := map[string][2]net.Conn{
		"in":        connection(t, here, peer.Do, conntracktest.Here4),
		"in, IPv6":  connection(t, here, peer.Do, conntracktest.Here6),
		"out":       connection(t, peer.Do, here, conntracktest.There4),
		"out, IPv6": connection(t, peer.Do, here, conntracktest.There6),
		"loopback":  connection(t, here, here, netip.MustParseAddr("127.0.0.1")),
		"itself":    connection(t, here, here, conntracktest.Here4),
	}
	for _, want := range []int{4, 0} {
		if n, err := l.adopt(t.Context(), all); n != want || err != nil {
			t.Errorf("adopted %d (%v), want %d", n, err, want)
		}
		if err := l.rules(nft.Desired{}, time.Now()); err != nil {
			t.Fatal(err)
		}
	}
	for name, p := range pipes {
		if err := errors.Join(carry(p[0], p[1]), carry(p[1], p[0])); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	listing, err := exec.Command("sh", "-c", "conntrack -L -f ipv4 -p tcp; conntrack -L -f ipv6 -p tcp").Output()
	if err != nil {
		t.Fatal(err)
	}
	var opened []string
	for _, line := range regexp.MustCompile(`ESTABLISHED src=(\S+) dst=(\S+)`).FindAllStringSubmatch(string(listing), -1) {
		opened = append(opened, line[1]+" "+line[2])
	}
	slices.Sort(opened)
	want := []string{"127.0.0.1 127.0.0.1", "192.0.2.1 192.0.2.1", "192.0.2.1 192.0.2.2", "192.0.2.2 192.0.2.1",
		"2001:db8::1 2001:db8::2", "2001:db8::2 2001:db8::1"}
	if diff := cmp.Diff(want, opened); diff != "" {
		t.Errorf("entries (-want +got):\n%s\n%s", diff, listing)
	}
}

// connection opens one between two hosts, each of which runs functions, and returns both ends.
func connection(t *testing.T, server, client func(func()), to netip.Addr) [2]net.Conn {
	t.Helper()
	var listener net.Listener
	var ends [2]net.Conn
	var err error
	server(func() { listener, err = net.Listen("tcp", netip.AddrPortFrom(to, 0).String()) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	client(func() {
		ends[1], err = (&net.Dialer{Timeout: 5 * time.Second, FallbackDelay: -1}).Dial("tcp", listener.Addr().String())
	})
	if err != nil {
		t.Fatal(err)
	}
	if ends[0], err = listener.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ends[0].Close(); ends[1].Close() })
	return ends
}

// carry sends more than a window one way.
func carry(from, to net.Conn) error {
	const n = 300 << 10
	_ = to.SetReadDeadline(time.Now().Add(10 * time.Second))
	go func() { _, _ = from.Write(make([]byte, n)) }()
	_, err := io.CopyN(io.Discard, to, n)
	return err
}
