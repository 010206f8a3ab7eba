package audit

import (
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"ctguard/agent/conntrack"
	"ctguard/agent/conntrack/conntrackfill"
	"ctguard/agent/conntrack/conntracktest"
	"ctguard/policy"
)

// root makes a directory that looks like a host's root, from paths and texts.
func root(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if target, ok := strings.CutPrefix(text, "-> "); ok {
			if err := os.Symlink(target, path); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

const netfilter = "proc/sys/net/netfilter/nf_conntrack_"

// Files are read in the order in which they are applied, under every name that settings have.
func TestReadFiles(t *testing.T) {
	r := Reader{Root: root(t, map[string]string{
		netfilter + "max":                     "65536\n",
		netfilter + "tcp_timeout_established": "432000\n",
		"proc/sys/net/nf_conntrack_max":       "65536\n",
		"etc/sysctl.d/10-own.conf": "# comment\n" +
			"net.netfilter.nf_conntrack_max = 1\n;net.nf_conntrack_max=2\n",
		"usr/lib/sysctl.d/10-own.conf": "net.netfilter.nf_conntrack_max = 3\n",
		"usr/lib/sysctl.d/05-early.conf": "-net/netfilter/nf_conntrack_max=4\nnet.ipv4.ip_forward = 1\n" +
			"net.netfilter.nf_conntrack_* = 5\n",
		"etc/sysctl.d/99-sysctl.conf": "-> ../sysctl.conf",
		"etc/sysctl.conf": "net.nf_conntrack_max = 6\nnet.ipv4.ip_conntrack_max=7\n" +
			"net.netfilter.nf_conntrack_nonsense=8\n",
		"etc/ufw/ufw.conf": "ENABLED=yes\n",
		"etc/ufw/sysctl.conf": "net/netfilter/nf_conntrack_tcp_timeout_established=9\n" +
			"net/netfilter/nf_conntrack_max=many\n",
		"etc/modules-load.d/x.conf":                    "# modules\nnf_conntrack\n",
		"sys/module/nf_conntrack/initstate":            "live\n",
		"sys/module/nf_conntrack_ftp/initstate":        "live\n",
		"sys/module/nf_conntrack_sip/parameters/ports": "5060\n", // built in
	})}
	f := &Facts{}
	r.settings(f)
	r.files(f)
	want := []Assignment{
		{"/usr/lib/sysctl.d/05-early.conf", 1, "net/netfilter/nf_conntrack_max", "nf_conntrack_max", 4},
		{"/etc/sysctl.d/10-own.conf", 2, "net.netfilter.nf_conntrack_max", "nf_conntrack_max", 1},
		{"/etc/sysctl.conf", 1, "net.nf_conntrack_max", "nf_conntrack_max", 6},
		{"/etc/sysctl.conf", 2, "net.ipv4.ip_conntrack_max", "", 7},
		{"/etc/sysctl.conf", 3, "net.netfilter.nf_conntrack_nonsense", "", 8},
		{"/etc/ufw/sysctl.conf", 1, "net/netfilter/nf_conntrack_tcp_timeout_established", established, 9},
	}
	if diff := cmp.Diff(want, f.Files); diff != "" {
		t.Error(diff)
	}
	if !f.Loaded || f.Shared || f.limit() != 65536 || f.Module != (Module{Loadable: true, AtBoot: true}) {
		t.Errorf("%+v", f)
	}
	if got := r.helpers(); !slices.Equal(got, []string{"nf_conntrack_ftp"}) {
		t.Errorf("helpers %v", got)
	}
}

// A kernel that has the old names only takes them; one without connection tracking has nothing to compare with.
func TestReadOtherKernels(t *testing.T) {
	f := &Facts{}
	r := Reader{Root: root(t, map[string]string{
		"etc/sysctl.conf": "net.netfilter.nf_conntrack_max = 1000\n", "etc/modules": "loop\n"})}
	r.settings(f)
	r.files(f)
	if f.Loaded || !f.Module.Loadable || f.Module.AtBoot || len(f.Files) != 1 || f.Files[0].Name != "nf_conntrack_max" {
		t.Errorf("%+v", f)
	}
	f = &Facts{}
	r = Reader{Root: root(t, map[string]string{
		"proc/sys/net/ipv4/netfilter/ip_conntrack_max": "1000\n",
		"etc/sysctl.conf": "net.ipv4.netfilter.ip_conntrack_max = 1000\n"})}
	r.settings(f)
	r.files(f)
	if !f.Loaded || f.limit() != 1000 || f.Files[0].Name != "nf_conntrack_max" {
		t.Errorf("%+v", f)
	}
}

// ctguard's table is found in every file that is loaded at boot, and no other table is.
func TestReadSaved(t *testing.T) {
	nested := "table inet ctguard {\n\tchain a {\n\t\tip saddr { 1.2.3.4 } drop\n\t}\n}\n"
	r := Reader{Root: root(t, map[string]string{
		"etc/nftables.conf": "flush ruleset\ntable inet ctguards {\n}\n" +
			"table ip ctguard {\n}\n# table inet ctguard {\n",
		"etc/nftables.d/a.nft":        "table inet x { }\n" + nested + "table inet y {\n}\n" + nested,
		"etc/sysconfig/nftables.conf": "table inet ctguard { }\n",
		"etc/nftables.d/dir/b":        nested,
	})}
	want := []SavedTable{{"/etc/sysconfig/nftables.conf", 1, 1},
		{"/etc/nftables.d/a.nft", 2, 6}, {"/etc/nftables.d/a.nft", 9, 13}}
	if diff := cmp.Diff(want, r.saved(&Facts{})); diff != "" {
		t.Error(diff)
	}
}

// What cannot be read is named, and the file beside it is read all the same.
func TestReadTooLarge(t *testing.T) {
	r := Reader{Root: root(t, map[string]string{
		"etc/sysctl.d/1.conf": strings.Repeat("#\n", mostOfFile), "etc/sysctl.d/2.conf": "net.nf_conntrack_max=1\n"})}
	f := &Facts{}
	r.files(f)
	if len(f.Unread) != 1 || len(f.Files) != 1 {
		t.Errorf("%v, %v", f.Unread, f.Files)
	}
}

// A flow that lost less time than has passed was renewed, even if the first look met it in the very moment of a packet;
// a stray packet's was not.
func TestRenewed(t *testing.T) {
	at := time.Unix(1000, 0)
	first := &policy.Census{Time: at,
		OneWay: []policy.OneWayFlow{{ID: 1, Left: 300}, {ID: 2, Left: 300}, {ID: 3, Left: 250}}}
	second := &policy.Census{Time: at.Add(3900 * time.Millisecond), Took: 800 * time.Millisecond,
		OneWay: []policy.OneWayFlow{{ID: 1, Left: 297}, {ID: 2, Left: 298}, {ID: 3, Left: 300}, {ID: 4, Left: 300}}}
	if n := renewed(first, second); n != 2 {
		t.Errorf("%d renewed", n)
	}
}

// Entries are counted by what they say.
func TestDigest(t *testing.T) {
	at := netip.MustParseAddrPort
	own := netip.MustParseAddr("192.0.2.1")
	web := policy.Selector{Protocol: policy.TCP, Port: 8000, Local: netip.PrefixFrom(own, 32), Inside: at("10.0.0.9:80")}
	d := newDigest(place{[]netip.Addr{own}, []netip.Prefix{netip.MustParsePrefix("10.0.0.0/16")}, []policy.Selector{web},
		oneDay})
	entry := func(proto uint8, src, dst string, more ...func(*conntrack.Entry)) {
		e := conntrack.Entry{Protocol: proto, Source: at(src), Destination: at(dst),
			ReplySource: at(dst), ReplyDestination: at(src),
			Replied: true, Silent: -1}
		for _, change := range more {
			change(&e)
		}
		d.add(e)
	}
	state := func(name string) func(*conntrack.Entry) { return func(e *conntrack.Entry) { e.State = name } }
	idle := func(e *conntrack.Entry) { e.State, e.Assured, e.Silent = "ESTABLISHED", true, 2*time.Hour }
	old := func(e *conntrack.Entry) { e.State, e.Assured, e.Left = "ESTABLISHED", true, 48*time.Hour }
	snat := func(e *conntrack.Entry) { e.Translated, e.ReplyDestination = true, at("203.0.113.1:4000") }
	dnat := func(e *conntrack.Entry) { e.Translated, e.ReplySource = true, at("10.0.0.9:80") }
	entry(6, "198.51.100.1:1000", "192.0.2.1:80", idle)
	entry(6, "198.51.100.1:1001", "192.0.2.1:80", old)
	entry(6, "198.51.100.1:1002", "192.0.2.1:80", state("SYN_RECV"))
	entry(17, "198.51.100.1:1000", "192.0.2.1:53", func(e *conntrack.Entry) { e.Replied = false })
	entry(17, "127.0.0.1:1000", "127.0.0.1:53")
	entry(17, "192.0.2.1:1000", "192.0.2.1:53")
	entry(17, "198.51.100.1:1000", "239.1.1.1:53")
	entry(17, "198.51.100.1:1000", "192.0.2.1:4789")
	entry(6, "10.0.0.2:1000", "198.51.100.1:443", snat)
	entry(6, "10.0.0.2:1001", "198.51.100.1:443", snat)
	entry(6, "198.51.100.1:1001", "192.0.2.1:8000", dnat)
	entry(6, "198.51.100.1:1001", "198.51.100.2:21", func(e *conntrack.Entry) { e.Helped = true })
	entry(47, "198.51.100.1:0", "198.51.100.2:0")
	entry(6, "10.0.0.2:1002", "10.0.1.7:445")
	want := Table{Listed: 14, Segments: 1, Forwarded: map[policy.Selector]int{web: 1}, Idle: 1, Older: 1,
		HalfOpen: 1, Unreplied: 1, Loopback: 1, Own: 1, Group: 1,
		Translated: 3, Helped: 1,
		Helps: map[Port]int{{6, 21}: 1}, Local: map[Port]int{{6, 80}: 3, {17, 53}: 1, {17, 4789}: 1},
		Overlays: map[string]int{"vxlan": 1, "gre": 1}, IdleTop: []Holder{{netip.MustParseAddr("198.51.100.1"), 1}},
		Inside: []Holder{{netip.MustParseAddr("10.0.0.2"), 2}},
		Ports:  []PortUse{{6, netip.MustParseAddr("203.0.113.1"), at("198.51.100.1:443"), 2}}}
	if diff := cmp.Diff(want, d.result(), cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
		cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); diff != "" {
		t.Error(diff)
	}
}

// Rules are recognized in every way in which they are written.
func TestRules(t *testing.T) {
	conntracktest.Privileged(t, "nft", "iptables-nft")
	for _, c := range []struct {
		name, nft, iptables string
		want                func(Rules) []string
	}{
		{"invalid", "ct state invalid drop", "", func(r Rules) []string { return r.DropInvalid }},
		{"invalid and more", "ct state invalid,untracked counter drop", "", func(r Rules) []string { return r.DropInvalid }},
		{"vmap", "ct state vmap { established : accept, invalid : drop }", "",
			func(r Rules) []string { return r.DropInvalid }},
		{"iptables", "", "-A PREROUTING -m conntrack --ctstate INVALID -j DROP",
			func(r Rules) []string { return r.DropInvalid }},
		{"iptables, old", "", "-A PREROUTING -m state --state INVALID -j DROP",
			func(r Rules) []string { return r.DropInvalid }},
		{"notrack", "tcp dport 53 notrack", "", func(r Rules) []string { return r.Notrack }},
		{"iptables notrack", "", "-A PREROUTING -p udp -j CT --notrack", func(r Rules) []string { return r.Notrack }},
		{"iptables helper", "", "-A PREROUTING -p tcp --dport 21 -j CT --helper ftp",
			func(r Rules) []string { return r.Helpers }},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := loadRules(t, c.nft, c.iptables)
			if got := c.want(f.Rules); len(got) != 1 || len(f.Rules.DropInvalid)+len(f.Rules.Notrack)+len(f.Rules.Helpers) != 1 {
				t.Errorf("%+v", f.Rules)
			}
		})
	}
	f := loadRules(t, `ct state established drop
		ct state invalid accept
		ct state invalid counter
		ct mark and 1 != 0 drop
		ct state vmap { established : drop, invalid : accept }`, "")
	if n := len(f.Rules.DropInvalid) + len(f.Rules.Notrack) + len(f.Rules.Helpers); n != 0 || len(f.Rules.Tables) != 1 {
		t.Errorf("%+v", f.Rules)
	}
}

// loadRules makes a namespace with rules, at prerouting, and reads them.
func loadRules(t *testing.T, nft, iptables string) *Facts {
	t.Helper()
	if err := conntrackfill.Enter(); err != nil {
		t.Fatal(err)
	}
	load := exec.Command("nft", "-f", "-")
	load.Stdin = strings.NewReader("table inet test {\nset names { type ipv4_addr; }\n" +
		"chain pre {\ntype filter hook prerouting priority raw;\n" + nft + "\n}\n}\n")
	if iptables != "" {
		load = exec.Command("iptables-nft-restore")
		load.Stdin = strings.NewReader("*raw\n:PREROUTING ACCEPT [0:0]\n" + iptables + "\nCOMMIT\n")
		if strings.Contains(iptables, "INVALID") {
			load.Stdin = strings.NewReader("*mangle\n:PREROUTING ACCEPT [0:0]\n" + iptables + "\nCOMMIT\n")
		}
	}
	if out, err := load.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	f := &Facts{}
	if err := f.readRules(); err != nil || len(f.Unread) > 0 {
		t.Fatal(err, f.Unread)
	}
	return f
}
