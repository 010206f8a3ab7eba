package survey

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"ctguard/policy"
)

// fixture returns a host of files.
func fixture(t *testing.T, files map[string]string) (h *Host, root string) {
	t.Helper()
	root = t.TempDir()
	for name, text := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	h = New(root)
	h.read.rest = 0 // whoever changes rules here asks at once, on a machine of any speed
	return h, root
}

// texts are addresses as people write them.
func texts(addrs []netip.Addr) []string {
	list := make([]string, len(addrs))
	for i, a := range addrs {
		list[i] = a.String()
	}
	slices.Sort(list)
	return list
}

func TestResolvers(t *testing.T) {
	for _, c := range []struct {
		name, text string
		want       []string
	}{
		{"two", "# comment\nsearch example.org\nnameserver 192.0.2.53\nnameserver 2001:db8::53\n",
			[]string{"192.0.2.53", "2001:db8::53"}},
		{"link-local", "nameserver fe80::1%eth0\n", []string{"fe80::1"}},
		{"mapped", "nameserver ::ffff:192.0.2.53\n", []string{"192.0.2.53"}},
		{"nonsense", "nameserver\nnameserver localhost\n#nameserver 192.0.2.1\n;nameserver 192.0.2.2\noptions ndots:5",
			[]string{}},
	} {
		t.Run(c.name, func(t *testing.T) {
			h, _ := fixture(t, map[string]string{"etc/resolv.conf": c.text})
			got, err := h.Resolvers()
			if diff := cmp.Diff(c.want, texts(got)); diff != "" || err != nil {
				t.Errorf("resolvers (-want +got), error %v:\n%s", err, diff)
			}
		})
	}
	h, _ := fixture(t, nil)
	if got, err := h.Resolvers(); err != nil || len(got) > 0 {
		t.Errorf("without a file: %v, error %v", got, err)
	}
}

// logind keeps a pipe beside each session's file, which nobody must open: it would block for ever.
func TestSessions(t *testing.T) {
	h, root := fixture(t, map[string]string{
		"run/systemd/sessions/1":  "UID=1000\nREMOTE=1\nREMOTE_HOST=192.0.2.7\n",
		"run/systemd/sessions/2":  "UID=0\nREMOTE_HOST=\"2001:db8::7\"\n",
		"run/systemd/sessions/3":  "UID=0\nREMOTE=0\nTTY=tty1\n",
		"run/systemd/sessions/4":  "REMOTE_HOST=bastion.example.org\n",
		"run/systemd/sessions/c5": "REMOTE_HOST=fe80::7%eth0\n",
	})
	if err := unix.Mkfifo(filepath.Join(root, "run/systemd/sessions/1.ref"), 0o600); err != nil {
		t.Fatal(err)
	}
	want := []string{"192.0.2.7", "2001:db8::7", "fe80::7"}
	if diff := cmp.Diff(want, texts(h.Sessions())); diff != "" {
		t.Errorf("sessions (-want +got):\n%s", diff)
	}
	h, _ = fixture(t, nil)
	if got := h.Sessions(); len(got) > 0 {
		t.Errorf("without logind: %v", got)
	}
}

const snmp = `Ip: Forwarding DefaultTTL InReceives
Ip: 1 64 5000
Icmp: InMsgs InErrors InEchos OutMsgs
Icmp: 10 0 7 10
Tcp: RtoAlgorithm RtoMin RtoMax MaxConn ActiveOpens PassiveOpens
Tcp: 1 200 120000 -1 50 1234
Udp: InDatagrams NoPorts InErrors OutDatagrams
Udp: 100 20 3 90
`

const snmp6 = `Ip6InReceives                   	99
Icmp6InEchos                    	4
Udp6InDatagrams                 	1000
Udp6NoPorts                     	200
Udp6InErrors                    	30
`

func TestArrivals(t *testing.T) {
	for _, c := range []struct {
		name  string
		files map[string]string
		want  policy.Arrivals
	}{
		{"both families", map[string]string{"proc/thread-self/net/snmp": snmp, "proc/thread-self/net/snmp6": snmp6},
			policy.Arrivals{TCPOpens: 1234, UDPDatagrams: 1353, Echoes: 11}},
		{"no IPv6", map[string]string{"proc/thread-self/net/snmp": snmp},
			policy.Arrivals{TCPOpens: 1234, UDPDatagrams: 123, Echoes: 7}},
		{"cut off", map[string]string{"proc/thread-self/net/snmp": "Tcp: PassiveOpens\nTcp: 5\nUdp: InDatagrams"},
			policy.Arrivals{TCPOpens: 5}},
		{"columns that don't match", map[string]string{
			"proc/thread-self/net/snmp": "Tcp: PassiveOpens X\nTcp: 5\nUdp: InDatagrams\nUdp: 6",
		},
			policy.Arrivals{UDPDatagrams: 6}},
	} {
		t.Run(c.name, func(t *testing.T) {
			h, _ := fixture(t, c.files)
			if got, err := h.Arrivals(); err != nil || got != c.want {
				t.Errorf("got %+v (%v), want %+v", got, err, c.want)
			}
		})
	}
	h, _ := fixture(t, nil)
	if _, err := h.Arrivals(); err == nil {
		t.Error("without counters: no error")
	}
}

func TestSockets(t *testing.T) {
	const sockstat = "sockets: used 300\nTCP: inuse 25 orphan 0 tw 3 alloc 40 mem 2\nUDP: inuse 8 mem 1\n"
	for _, c := range []struct {
		name  string
		files map[string]string
		want  int
	}{
		{"both families", map[string]string{"proc/thread-self/net/sockstat": sockstat,
			"proc/thread-self/net/sockstat6": "TCP6: inuse 12\nUDP6: inuse 4\n"}, 37},
		{"no IPv6", map[string]string{"proc/thread-self/net/sockstat": sockstat}, 25},
		{"none", nil, 0},
	} {
		h, _ := fixture(t, c.files)
		if got, err := h.Sockets(); err != nil || got != c.want {
			t.Errorf("%s: %d (%v), want %d", c.name, got, err, c.want)
		}
	}
}

func TestSocketsMalformed(t *testing.T) {
	h, _ := fixture(t, map[string]string{"proc/thread-self/net/sockstat": "TCP: inuse many\n"})
	if n, err := h.Sockets(); err == nil || !strings.HasPrefix(err.Error(), "count sockets: ") {
		t.Errorf("%d (%v), want an error that says what was read", n, err)
	}
}

func TestMemoryOfTheMachine(t *testing.T) {
	for name, c := range map[string]struct {
		files map[string]string
		want  int
		fault string
	}{
		"total": {map[string]string{
			"proc/meminfo": "MemTotal:       16384 kB\nMemFree: 5 kB\nHugePages_Total:       0\n",
		}, 16 << 20, ""},
		"no total": {map[string]string{"proc/meminfo": "MemFree: 5 kB\n"}, 0, "look for room: no MemTotal in /proc/meminfo"},
		"no file":  {nil, 0, "look for room: "},
	} {
		h, _ := fixture(t, c.files)
		m, err := h.Memory()
		if c.fault == "" && (err != nil || m.Total != c.want) ||
			c.fault != "" && (err == nil || !strings.HasPrefix(err.Error(), c.fault)) {
			t.Errorf("%s: %d (%v), want %d or %q", name, m.Total, err, c.want, c.fault)
		}
	}
}

func TestEphemeralPorts(t *testing.T) {
	h, _ := fixture(t, map[string]string{"proc/sys/net/ipv4/ip_local_port_range": "32768\t60999\n"})
	if low, high, err := h.ephemeral(); err != nil || low != 32768 || high != 60999 {
		t.Errorf("%d to %d (%v)", low, high, err)
	}
	h, _ = fixture(t, map[string]string{"proc/sys/net/ipv4/ip_local_port_range": "all\n"})
	if _, _, err := h.ephemeral(); err == nil {
		t.Error("nonsense: no error")
	}
}

// A message that is cut off is no socket, whatever else it says.
func TestParseSocket(t *testing.T) {
	b := make([]byte, sizeofInetDiagMsg)
	b[0] = unix.AF_INET6
	b[4], b[5], b[6], b[7] = 0, 22, 0xff, 0xff
	copy(b[8:], net.ParseIP("::ffff:198.51.100.1"))
	copy(b[24:], net.ParseIP("2001:db8::7"))
	want := Connection{netip.MustParseAddrPort("198.51.100.1:22"), netip.MustParseAddrPort("[2001:db8::7]:65535")}
	if got, ok := parseSocket(b); !ok || got.Connection != want {
		t.Errorf("got %v, want %v", got, want)
	}
	b[0] = unix.AF_INET
	copy(b[8:], []byte{198, 51, 100, 2})
	if got, ok := parseSocket(b); !ok || got.Local != netip.MustParseAddrPort("198.51.100.2:22") {
		t.Errorf("IPv4: got %v", got)
	}
	for n := range sizeofInetDiagMsg {
		if got, ok := parseSocket(b[:n]); ok {
			t.Fatalf("%d bytes were taken for %v", n, got)
		}
	}
}

// What others have is what process 1 sees, or else what memory holds beyond the kernel's own stock.
func TestOtherNamespaces(t *testing.T) {
	stock := slackPerCPU * runtime.NumCPU()
	slab := func(n int) string {
		return fmt.Sprintf("slabinfo - version: 2.1\nnf_conntrack_expect 9000 9000 208 19 1\n"+
			"nf_conntrack %d %d 256 16 1 : tunables 0 0 0\n", n, n+10)
	}
	const entries = "entries  clashres found\n000000ff  00000000 00000000\n000000ff  00000000 00000000\n"
	for name, c := range map[string]struct {
		files map[string]string
		want  int
	}{
		"nothing known":   {nil, 0},
		"process 1":       {map[string]string{"proc/1/net/stat/nf_conntrack": entries, "proc/slabinfo": slab(1 << 20)}, 255},
		"slab":            {map[string]string{"proc/slabinfo": slab(stock + 70)}, 70},
		"slab with stock": {map[string]string{"proc/slabinfo": slab(stock - 1)}, 0},
	} {
		h, _ := fixture(t, c.files)
		if got := h.OtherNamespaces(); got != c.want {
			t.Errorf("%s: %d entries elsewhere, want %d", name, got, c.want)
		}
	}
}
