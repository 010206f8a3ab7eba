package survey

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// Whatever is in the files that are read of this host, nothing breaks, and no size is negative.
func FuzzProc(f *testing.F) {
	for _, seed := range []string{"", "\n", "Tcp: A B\nTcp: 1 -1\n", "TCP: inuse 4 orphan 0\nTCP6: inuse 3\n",
		"MemTotal: 2048 kB\n", "nf_conntrack 5 10 256\n", "entries\n0000000a 1\n", "32768 60999\n", "4096 131072 6291456",
		"nameserver 192.0.2.1\nnameserver fe80::1%lo\n", "REMOTE_HOST=\"2001:db8::7\"\n", "99999999999999999999 1\n",
		"MemTotal: -1 kB", "nf_conntrack -1 -1 -1", ipvsHeader + ipvsService, ipvsHeader + "FWM  00000001 rr\n"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		root := t.TempDir()
		for _, name := range []string{
			"proc/thread-self/net/snmp", "proc/thread-self/net/snmp6", "proc/thread-self/net/sockstat",
			"proc/thread-self/net/sockstat6", "proc/thread-self/net/ip_vs",
			"proc/meminfo", "proc/slabinfo", "proc/1/net/stat/nf_conntrack",
			"proc/sys/net/ipv4/ip_local_port_range", "proc/sys/net/ipv4/tcp_rmem", "etc/resolv.conf", "run/systemd/sessions/1"} {
			path := filepath.Join(root, name)
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, text, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		h := New(root)
		_, _ = h.Arrivals()
		_, _ = h.Resolvers()
		_, _, _ = h.ephemeral()
		_, _ = h.windowScale()
		h.Sessions()
		if b := h.balanced(); !b.any && (b.all || len(b.ports) > 0) {
			t.Errorf("IPVS balances nothing, and %+v", b)
		}
		if n, err := h.Sockets(); n < 0 {
			t.Errorf("%d sockets (%v)", n, err)
		}
		if m, err := h.Memory(); m.Total < 0 || m.Entry < 0 {
			t.Errorf("memory %+v (%v)", m, err)
		}
		if n := h.OtherNamespaces(); n < 0 {
			t.Errorf("%d entries elsewhere", n)
		}
	})
}

// Whatever the kernel says of a socket, it is read or left out.
func FuzzSocket(f *testing.F) {
	message := make([]byte, sizeofInetDiagMsg, sizeofInetDiagMsg+16)
	message[0] = unix.AF_INET
	f.Add(message)
	message = binary.NativeEndian.AppendUint16(message, 12)
	message = binary.NativeEndian.AppendUint16(message, inetDiagInfo)
	f.Add(append(message, 1, 2, 3, 4, 5, tcpInfoOptWindow, 0x77, 0))
	f.Fuzz(func(t *testing.T, b []byte) {
		if s, ok := parseSocket(b); ok && !s.Local.Addr().IsValid() {
			t.Errorf("a socket without an address: %+v", s)
		}
	})
}
