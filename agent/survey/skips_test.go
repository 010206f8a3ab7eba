package survey

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"ctguard/agent/conntrack/conntracktest"
	"ctguard/policy"
)

// wantUnfit compares why closed ports can't be told with why they should not.
func wantUnfit(t *testing.T, h *Host, name, want string) {
	t.Helper()
	unsupported, err := h.Unsupported()
	if reason := unsupported[policy.ClosedPorts]; err != nil || reason != want {
		t.Errorf("%s: unsupported for %q (%v), want %q", name, reason, err, want)
	}
	if reason := unsupported[policy.DropInvalid]; reason != "" && (want != balances || reason != balances) {
		t.Errorf("%s: drop-invalid is unsupported for %q", name, reason)
	}
	delete(unsupported, policy.ClosedPorts)
	delete(unsupported, policy.DropInvalid)
	if len(unsupported) > 0 {
		t.Errorf("%s: unsupported are %v too", name, unsupported)
	}
}

// Closed ports can't be told where packets for this host go elsewhere than they are addressed to.
func TestUnfitForClosedPorts(t *testing.T) {
	enter(t, "nft", "iptables-nft")
	h, _ := fixture(t, nil)
	wantUnfit(t, h, "no rules", "")
	feed(t, "table inet home {\n chain pre {\n type filter hook prerouting priority mangle\n"+
		" tcp dport 80 meta mark set 1\n }\n}")
	wantUnfit(t, h, "a mark", "")
	feed(t, "table inet home {\n chain post {\n type nat hook postrouting priority srcnat\n"+
		" ip saddr 10.0.0.0/8 masquerade\n }\n}")
	wantUnfit(t, h, "masquerade", "NAT on this host: chain post of table home")
	feed(t, "table inet home {\n chain pre {\n type filter hook prerouting priority mangle\n"+
		" tcp dport 80 tproxy ip to :3128\n }\n}")
	wantUnfit(t, h, "tproxy", "tproxy on this host: chain pre of table home")
	feed(t, "table inet home {\n chain there {\n meta l4proto tcp tproxy to :3128\n }\n chain pre {\n"+
		" type filter hook prerouting priority mangle\n tcp dport 80 jump there\n }\n}")
	wantUnfit(t, h, "tproxy by a jump", "tproxy on this host: chain there of table home")
	feed(t, "")
	run(t, "iptables-nft -t mangle -A PREROUTING -p tcp -m tcp --dport 80 -j MARK --set-mark 1")
	wantUnfit(t, h, "a mark of iptables-nft", "")
	run(t, "iptables-nft -t mangle -A PREROUTING -p tcp -m tcp --dport 80 -j TPROXY --on-port 3128")
	wantUnfit(t, h, "tproxy of iptables-nft", "tproxy on this host: chain PREROUTING of table mangle")
}

const (
	ipvsHeader = "IP Virtual Server version 1.2.1 (size=4096)\nProt LocalAddress:Port Scheduler Flags\n" +
		"  -> RemoteAddress:Port Forward Weight ActiveConn InActConn\n"
	ipvsService = "TCP  C6336401:0050 rr  \n  -> 0A000001:0050      Masq    1      0          0         \n"
)

// What nftables doesn't see is in files.
func TestUnfitByFiles(t *testing.T) {
	enter(t)
	const legacy = "tproxy on this host: the mangle table of iptables-legacy"
	for _, c := range []struct {
		name, want string
		files      map[string]string
	}{
		{"IPVS without services", "", map[string]string{"ip_vs": ipvsHeader}},
		{"IPVS with a service",
			"IPVS has services on this host (ip_vs)", map[string]string{"ip_vs": ipvsHeader + ipvsService}},
		{"TPROXY is known",
			"", map[string]string{"ip_tables_targets": "LOG\nTPROXY\n", "ip_tables_names": "filter\n"}},
		{"a mangle table", "", map[string]string{"ip_tables_targets": "LOG\n", "ip_tables_names": "mangle\n"}},
		{"both",
			legacy, map[string]string{"ip_tables_targets": "LOG\nTPROXY\n", "ip_tables_names": "filter\nmangle\n"}},
		{"both, IPv6", legacy, map[string]string{"ip6_tables_targets": "TPROXY\n", "ip6_tables_names": "mangle\n"}},
		{"a nat table",
			"NAT on this host: iptables-legacy has a nat table (ip6_tables_names)",
			map[string]string{"ip6_tables_names": "nat\n"}},
	} {
		files := make(map[string]string)
		for name, text := range c.files {
			files["proc/thread-self/net/"+name] = text
		}
		h, _ := fixture(t, files)
		wantUnfit(t, h, c.name, c.want)
	}
}

// A port that goes elsewhere, that is helped, or whose listener has its own buffer stays without synproxy.
func TestUnproxied(t *testing.T) {
	peer := enterPair(t, "nft")
	set(t, "ipv4/tcp_rmem", "4096 131072 6291456")
	usual, err := New("/").Handshake()
	if err != nil {
		t.Fatal(err)
	}
	listen(t, "tcp", ":80")
	listenWith(t, ":90", 16384)
	listenWith(t, ":443", 16384)
	h := New("/")
	want := func(name string, want map[uint16]string) {
		t.Helper()
		all := selectors(t, "tcp/80, tcp/90, tcp/443, tcp/8080, tcp/8081")
		got, err := h.Unproxied(all)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		for _, s := range all {
			if !strings.Contains(got[s], want[s.Port]) || (got[s] != "") != (want[s.Port] != "") {
				t.Errorf("%s: %s: %q, want %q", name, s, got[s], want[s.Port])
			}
		}
	}
	want("without connections", nil)
	for _, port := range []uint16{80, 90} {
		for _, to := range []netip.Addr{conntracktest.Here4, conntracktest.Here6} {
			peer.Do(func() { dial(t, "tcp", netip.AddrPortFrom(to, port).String()) })
		}
	}
	other := map[uint16]string{90: fmt.Sprintf("scale 0, this host's settings make %d", usual.WindowScale)}
	want("a buffer of its own", other)
	feed(t, "table inet home {\n chain pre {\n type nat hook prerouting priority dstnat\n"+
		" tcp dport 8080 redirect to :9\n }\n}")
	want("a redirected port", map[uint16]string{90: other[90], 8080: "NAT on this host: chain pre of table home"})
	feed(t, "table inet home {\n chain post {\n type nat hook postrouting priority srcnat\n masquerade\n }\n}")
	want("masquerade", other)
	const unread = "NAT on this host: chain pre of table home"
	feed(t, "table inet home {\n chain pre {\n type nat hook prerouting priority dstnat\n"+
		" dnat ip to tcp dport map { 80 : 10.0.0.1 }\n }\n}")
	want("a map", map[uint16]string{80: unread, 90: other[90]})
	feed(t, "")
	peer.Do(func() { set(t, "ipv4/tcp_window_scaling", "0") })
	peer.Do(func() { dial(t, "tcp4", netip.AddrPortFrom(conntracktest.Here4, 443).String()) })
	want("a peer that does not scale", other)

	h, _ = fixture(t, map[string]string{
		"sys/module/nf_conntrack_ftp/refcnt": "1\n", "proc/sys/net/netfilter/nf_conntrack_helper": "1\n",
		"proc/sys/net/ipv4/tcp_rmem": "1 2 3", "proc/sys/net/ipv4/tcp_sack": "1",
		"proc/sys/net/ipv4/tcp_timestamps": "1", "proc/sys/net/ipv4/tcp_window_scaling": "1",
	})
	ftp := policy.Selector{Protocol: policy.TCP, Port: 21}
	got, err := h.Unproxied([]policy.Selector{ftp})
	if err != nil || got[ftp] != "a conntrack helper watches it: nf_conntrack_ftp" {
		t.Errorf("a helped port: %v (%v)", got, err)
	}
	if got, err := h.Unproxied(nil); err != nil || len(got) > 0 {
		t.Errorf("no listeners: %v (%v)", got, err)
	}
}

// listenWith is listen with a receive buffer of so many bytes.
func listenWith(t *testing.T, address string, buffer int) {
	t.Helper()
	listenSet(t, address, func(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, buffer) })
}

// listenSet listens with a socket that something is set of before.
func listenSet(t *testing.T, address string, set func(fd int) error) {
	t.Helper()
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
		refused := c.Control(func(fd uintptr) { err = set(int(fd)) })
		return errors.Join(refused, err)
	}}
	listener, err := config.Listen(context.Background(), "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
}
