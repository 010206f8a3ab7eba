package survey

import (
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"ctguard/policy"
)

// selectors reads a list of selectors with commas between them.
func selectors(t *testing.T, text string) (list []policy.Selector) {
	t.Helper()
	for name := range strings.SplitSeq(text, ", ") {
		if name == "" {
			continue
		}
		s, err := policy.ParseSelector(name)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, s)
	}
	return list
}

// feed gives nft a ruleset in place of the one before.
func feed(t *testing.T, rules string) {
	t.Helper()
	feedMore(t, "flush ruleset\n"+strings.ReplaceAll(rules, "}}", "}\n}\n"))
}

// feedMore gives nft commands.
func feedMore(t *testing.T, commands string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "rules")
	if err := os.WriteFile(file, []byte(commands), 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, "nft -f "+file)
}

// asked are the selectors that the tests of NAT ask about.
const asked = "tcp/80, tcp/8080, udp/53, udp/80, echo, multicast, tcp/80 with 192.0.2.0/24, " +
	"tcp/8080 with 192.0.2.0/24, echo with 192.0.2.0/24"

// wantRefused compares what is refused with what should be, all of it for one reason.
func wantRefused(t *testing.T, h *Host, name, want, reason string) {
	t.Helper()
	refused, err := h.Refused(selectors(t, asked))
	if err != nil {
		t.Errorf("%s: %v", name, err)
		return
	}
	var got []string
	for _, s := range selectors(t, asked) {
		if refused[s] != "" {
			got = append(got, s.String())
		}
		if refused[s] != "" && refused[s] != reason {
			t.Errorf("%s: %s is refused for %q, want %q", name, s, refused[s], reason)
		}
	}
	if diff := cmp.Diff(want, strings.Join(got, ", ")); diff != "" {
		t.Errorf("%s: refused (-want +got):\n%s", name, diff)
	}
}

// What the rules of nftables can touch is refused, and nothing else.
func TestRefusedForNAT(t *testing.T) {
	enter(t, "nft")
	h, _ := fixture(t, nil)
	const (
		pre   = "table inet home {\n chain pre {\n type nat hook prerouting priority dstnat\n"
		out   = "table inet home {\n chain out {\n type nat hook output priority -100\n"
		in    = "table inet home {\n chain in {\n type nat hook input priority 100\n"
		post  = "table inet home {\n chain post {\n type nat hook postrouting priority srcnat\n"
		ports = "tcp/80, tcp/8080, udp/53, udp/80"

		port8080   = "tcp/8080, tcp/8080 with 192.0.2.0/24"
		allTCP     = "tcp/80, tcp/8080, tcp/80 with 192.0.2.0/24, tcp/8080 with 192.0.2.0/24"
		everything = asked
	)
	for _, c := range []struct{ name, rules, want, chain string }{
		{"no rules", "", "", ""},
		{"a filter", "table ip home {\n chain in {\n type filter hook input priority 0\n accept\n }\n}", "", ""},
		{"an empty nat chain", post + "}}", "", ""},
		{"a nat chain that translates nothing", pre + "counter accept\n}}", "", ""},

		{"one port", pre + "tcp dport 8080 dnat ip to 10.0.0.1:80\n}}", port8080, "pre"},
		{"one port of IPv6",
			strings.Replace(pre, "inet", "ip6", 1) + "tcp dport 8080 dnat to [2001:db8:2::1]:80\n}}",
			port8080, "pre"},
		{"one port of this host", pre + "fib daddr type local tcp dport 8080 redirect to :9\n}}", port8080, "pre"},
		{"another port", pre + "tcp dport 8081 redirect to :9\n}}", "", ""},
		{"a range", pre + "tcp dport 8000-9000 redirect to :9\n}}", port8080, "pre"},
		{"a range beside", pre + "tcp dport 81-8079 redirect to :9\n}}", "", ""},
		{"at least", pre + "tcp dport >= 8080 redirect to :9\n}}", port8080, "pre"},
		{"above", pre + "tcp dport > 79 redirect to :9\n}}", allTCP, "pre"},
		{"all but one", pre + "tcp dport != 80 redirect to :9\n}}", allTCP, "pre"},
		{"a set", pre + "tcp dport { 1, 8080, 9000 } redirect to :9\n}}", port8080, "pre"},
		{"a set of ranges",
			pre + "tcp dport { 1-79, 81-8000, 8080, 9000-65535 } redirect to :9\n}}", port8080, "pre"},
		{"a set of ranges beside", pre + "tcp dport { 1-79, 81-8079, 8081-65535 } redirect to :9\n}}", "", ""},
		{"all but a set", pre + "tcp dport != { 80, 8080 } redirect to :9\n}}", allTCP, "pre"},
		{"a named set",
			"table inet home {\n set s {\n type inet_service\n elements = { 8080 }\n}\n}\n" +
				pre + "tcp dport @s redirect to :9\n}}", port8080, "pre"},
		{"an empty named set",
			"table inet home {\n set s {\n type inet_service\n}\n}\n" +
				pre + "tcp dport @s redirect to :9\n}}", "", ""},
		{"a set of addresses and ports",
			pre + "ip daddr . tcp dport { 198.51.100.1 . 8080 } redirect to :9\n}}", allTCP, "pre"},
		{"two protocols",
			pre + "meta l4proto { tcp, udp } th dport 8080 redirect to :9\n}}",
			"tcp/8080, multicast, tcp/8080 with 192.0.2.0/24", "pre"},
		{"the protocol field of IPv4",
			strings.Replace(pre, "inet", "ip", 1) + "ip protocol tcp redirect to :9\n}}", allTCP, "pre"},
		{"the protocol field of IPv4 in a table of both", pre + "ip protocol tcp redirect to :9\n}}", allTCP, "pre"},
		{"both ports at once", pre + "meta l4proto tcp @th,0,32 0x04001f90 redirect to :9\n}}", port8080, "pre"},
		{"UDP", pre + "udp dport 53 redirect to :5353\n}}", "udp/53, multicast", "pre"},
		{"UDP of this host", pre + "fib daddr type local udp dport 53 redirect to :5353\n}}", "udp/53", "pre"},
		{"ICMP", pre + "ip protocol icmp dnat ip to 10.0.0.1\n}}", "echo, multicast, echo with 192.0.2.0/24", "pre"},
		{"an interface", pre + "iifname eth0 dnat ip to 10.0.0.1\n}}", everything, "pre"},
		{"a map to addresses", pre + "dnat ip to tcp dport map { 8080 : 10.0.0.1 }\n}}", port8080, "pre"},
		{"a map to verdicts",
			"table inet home {\n chain there {\n dnat ip to 10.0.0.1\n}\n}\n" +
				pre + "tcp dport vmap { 8080 : jump there }\n}}", port8080, "there"},
		{"locally sent", out + "tcp dport 8080 dnat ip to 10.0.0.1\n}}", "tcp/8080", "out"},
		{"locally sent, all", out + "dnat ip to 10.0.0.1\n}}", ports + ", multicast", "out"},

		{"masquerade", post + "masquerade\n}}", ports, "post"},
		{"masquerade of some", post + "ip saddr 10.0.0.0/8 oifname eth0 masquerade\n}}", ports, "post"},
		{"masquerade of TCP", post + "meta l4proto tcp masquerade\n}}", "tcp/80, tcp/8080", "post"},
		{"masquerade of connections to one port", post + "tcp dport 443 masquerade\n}}", "tcp/80, tcp/8080", "post"},
		{"snat", post + "ip saddr 10.0.0.0/8 snat ip to 198.51.100.1\n}}", ports + ", multicast", "post"},
		{"snat on the way in", in + "tcp dport 8080 snat ip to 198.51.100.1\n}}", "tcp/80, tcp/8080", "in"},
		{"snat of all on the way in", in + "snat ip to 198.51.100.1\n}}", ports + ", echo, multicast", "in"},

		{"a jump",
			"table inet home {\n chain there {\n tcp dport 8080 dnat ip to 10.0.0.1\n}\n}\n" +
				pre + "fib daddr type local jump there\n}}", port8080, "there"},
		{"a jump with a port",
			"table inet home {\n chain there {\n dnat ip to 10.0.0.1\n}\n}\n" +
				pre + "tcp dport 8080 goto there\n}}", port8080, "there"},
		{"a jump that excludes",
			"table inet home {\n chain there {\n tcp dport 8080 dnat ip to 10.0.0.1\n}\n}\n" +
				pre + "tcp dport 80 jump there\n}}", "", ""},
		{"a jump to a chain that translates nothing",
			"table inet home {\n chain there {\n accept\n}\n}\n" + pre + "jump there\n}}", "", ""},
	} {
		feed(t, c.rules)
		reason := ""
		if c.chain != "" {
			reason = "NAT on this host: chain " + c.chain + " of table home"
		}
		wantRefused(t, h, c.name, c.want, reason)
	}
}

// dockerRules are the nat rules of docker with one published port.
var dockerRules = []string{
	"-N DOCKER",
	"-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER",
	"-A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER",
	"-A DOCKER -i docker0 -j RETURN",
	"-A DOCKER ! -i docker0 -p tcp -m tcp --dport 8080 -j DNAT --to-destination 172.17.0.2:80",
}

// The rules of iptables-nft are nftables rules with extensions.
func TestRefusedForIptables(t *testing.T) {
	enter(t, "iptables-nft", "nft")
	h, _ := fixture(t, nil)
	iptables := func(rules ...string) {
		t.Helper()
		for _, r := range rules {
			run(t, "iptables-nft -t nat "+r)
		}
	}
	iptables(dockerRules...)
	wantRefused(t, h, "docker, a published port", "tcp/8080, tcp/8080 with 192.0.2.0/24",
		"NAT on this host: chain DOCKER of table nat")
	iptables("-F DOCKER", "-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE")
	wantRefused(t, h, "docker, its masquerade", "tcp/80, tcp/8080, udp/53, udp/80",
		"NAT on this host: chain POSTROUTING of table nat")
	iptables("-F POSTROUTING", "-A DOCKER -p udp -m udp --dport 53 -j LOG")
	wantRefused(t, h, "a rule that only logs", "", "")
	iptables("-A DOCKER -p udp -m udp --dport 53 -j REDIRECT --to-ports 5353")
	wantRefused(t, h, "a published port of UDP, to this host only", "udp/53",
		"NAT on this host: chain DOCKER of table nat")
	iptables("-F", "-A PREROUTING -p udp -m multiport --dports 53,123 -j REDIRECT --to-ports 5353")
	wantRefused(t, h, "several ports", "udp/53, multicast", "NAT on this host: chain PREROUTING of table nat")
	iptables("-F", "-A PREROUTING -p udp -m multiport ! --dports 80:90 -j REDIRECT --to-ports 5353")
	wantRefused(t, h, "all but several ports", "udp/53, udp/80, multicast",
		"NAT on this host: chain PREROUTING of table nat")
	iptables("-F", "-A PREROUTING -p udp -m length --length 100 -j REDIRECT --to-ports 5353")
	wantRefused(t, h, "an extension that is not read", "udp/53, udp/80, multicast",
		"NAT on this host: chain PREROUTING of table nat")
	iptables("-F", "-A PREROUTING -p tcp -m tcp ! --dport 80 -j REDIRECT --to-ports 9")
	wantRefused(t, h, "all but a port",
		"tcp/80, tcp/8080, tcp/80 with 192.0.2.0/24, tcp/8080 with 192.0.2.0/24",
		"NAT on this host: chain PREROUTING of table nat")
	iptables("-F", "-A PREROUTING -d 198.51.100.1/32 -j NETMAP --to 10.0.0.1/32")
	wantRefused(t, h, "a whole address", asked, "NAT on this host: chain PREROUTING of table nat")
}

// iptables-legacy rules are invisible to nftables; its nat table is not.
func TestRefusedForLegacyNAT(t *testing.T) {
	enter(t, "iptables-legacy")
	h := New("/")
	wantRefused(t, h, "no rules", "", "")
	run(t, "iptables-legacy -t nat -A POSTROUTING -j MASQUERADE")
	wantRefused(t, h, "masquerade", asked, "NAT on this host: iptables-legacy has a nat table (ip_tables_names)")
}

// Selectors without a port, or with several, are refused for whatever may touch one of their packets,
// and all for anything.
func TestRefusedForms(t *testing.T) {
	enter(t, "nft")
	h, _ := fixture(t, nil)
	const (
		forms = "tcp, udp, all, tcp/8000-9000, udp/50-60, tcp/80 at 203.0.113.0/28, tcp/8080 on eth0, " +
			"tcp/8080 with 192.0.2.0/24 on eth0, tcp with 192.0.2.0/24, udp/50-60 with 192.0.2.0/24, " +
			"udp at 203.0.113.0/28, echo at 203.0.113.0/28"
		pre    = "table inet home {\n chain pre {\n type nat hook prerouting priority dstnat\n"
		post   = "table inet home {\n chain post {\n type nat hook postrouting priority srcnat\n"
		to8000 = "tcp, all, tcp/8000-9000, tcp/80 at 203.0.113.0/28"
		allUDP = "udp, all, udp/50-60, udp/50-60 with 192.0.2.0/24, udp at 203.0.113.0/28"
	)
	for rules, want := range map[string]string{
		post + "}}": "",
		pre + "tcp dport 8080 redirect to :9\n}}": "tcp, all, tcp/8000-9000, tcp/8080 on eth0, " +
			"tcp/8080 with 192.0.2.0/24 on eth0, tcp with 192.0.2.0/24",
		pre + "tcp dport 9001 redirect to :9\n}}":                "tcp, all, tcp with 192.0.2.0/24",
		pre + "tcp dport 1-8000 redirect to :9\n}}":              to8000 + ", tcp with 192.0.2.0/24",
		pre + "udp dport { 60-99, 200 } redirect to :9\n}}":      allUDP,
		pre + "meta l4proto icmp dnat ip to 10.0.0.1\n}}":        "all, echo at 203.0.113.0/28",
		pre + "meta l4proto sctp dnat ip to 10.0.0.1\n}}":        "all",
		post + "meta l4proto tcp masquerade\n}}":                 to8000 + ", tcp/8080 on eth0, tcp with 192.0.2.0/24",
		post + "ip saddr 10.0.0.0/8 udp dport 53 masquerade\n}}": allUDP,
	} {
		feed(t, rules)
		refused, err := h.Refused(selectors(t, forms))
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, s := range selectors(t, forms) {
			if refused[s] != "" {
				got = append(got, s.String())
			}
		}
		if diff := cmp.Diff(want, strings.Join(got, ", ")); diff != "" {
			t.Errorf("%s: refused (-want +got):\n%s", rules, diff)
		}
	}
}

// What else keeps everything tracked: helpers of any port of theirs, IPVS and tproxy.
func TestRefusedWhole(t *testing.T) {
	enter(t, "nft")
	const list = "tcp, udp, all, tcp/20-22, tcp/22-30, tcp/21 on eth0, tcp at 203.0.113.0/28, udp/53"
	const tproxy = "table ip home {\n chain pre {\n type filter hook prerouting priority mangle\n" +
		" tcp dport 80 tproxy to :3128\n}\n}\n"
	const ipvs = "IP Virtual Server version 1.2.1 (size=4096)\nProt LocalAddress:Port Scheduler Flags\n" +
		"  -> RemoteAddress:Port Forward Weight ActiveConn InActConn\n"
	ftp := "a conntrack helper watches it: nf_conntrack_ftp"
	for _, c := range []struct {
		name, file, text, rules string
		want                    map[string]string
	}{
		{"nothing", "etc/hostname", "", "", map[string]string{}},
		{"a helper of TCP", "sys/module/nf_conntrack_ftp/refcnt", "0", "", map[string]string{
			"tcp": ftp, "all": ftp, "tcp/20-22": ftp, "tcp/21 on eth0": ftp, "tcp at 203.0.113.0/28": ftp}},
		{"a helper of UDP", "sys/module/nf_conntrack_tftp/refcnt", "0", "", map[string]string{
			"udp": "a conntrack helper watches it: nf_conntrack_tftp",
			"all": "a conntrack helper watches it: nf_conntrack_tftp"}},
		{"IPVS without services", "proc/thread-self/net/ip_vs", ipvs, "", map[string]string{}},
		{"IPVS", "proc/thread-self/net/ip_vs", ipvs + "TCP  C6336401:0050 rr\n", "", map[string]string{
			"tcp": "IPVS has services on this host (ip_vs)", "udp": "IPVS has services on this host (ip_vs)",
			"all":                   "IPVS has services on this host (ip_vs)",
			"tcp at 203.0.113.0/28": "IPVS has services on this host (ip_vs)"}},
		{"IPVS of a port", "proc/thread-self/net/ip_vs", ipvs + "TCP  C6336401:0015 rr\n  -> 0A000001:0050 Masq 1 0 0\n" +
			"UDP  [2001:0db8:0000:0000:0000:0000:0000:0001]:0035 rr\n", "", map[string]string{
			"tcp": balances, "udp": balances, "all": balances, "tcp at 203.0.113.0/28": balances, "tcp/20-22": balances,
			"tcp/21 on eth0": balances, "udp/53": balances}},
		{"IPVS by mark", "proc/thread-self/net/ip_vs", ipvs + "FWM  00000001 rr\n", "", map[string]string{
			"tcp": balances, "udp": balances, "all": balances, "tcp at 203.0.113.0/28": balances, "tcp/20-22": balances,
			"tcp/22-30": balances, "tcp/21 on eth0": balances, "udp/53": balances}},
		{"tproxy", "etc/hostname", "", tproxy, map[string]string{
			"tcp":                   "tproxy on this host: chain pre of table home",
			"udp":                   "tproxy on this host: chain pre of table home",
			"all":                   "tproxy on this host: chain pre of table home",
			"tcp at 203.0.113.0/28": "tproxy on this host: chain pre of table home"}},
	} {
		feed(t, c.rules)
		h, _ := fixture(t, map[string]string{c.file: c.text, "proc/sys/net/netfilter/nf_conntrack_helper": "1\n"})
		refused, err := h.Refused(selectors(t, list))
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
		got := map[string]string{}
		for s, reason := range refused {
			got[s.String()] = reason
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s: refused (-want +got):\n%s", c.name, diff)
		}
	}
}

// Where multicast is routed, masquerading changes it.
func TestRefusedForMulticastRouting(t *testing.T) {
	enter(t, "nft")
	feed(t, "table inet home {\n chain post {\n type nat hook postrouting priority srcnat\n masquerade\n }\n}")
	const header = "Interface      BytesIn  PktsIn  BytesOut PktsOut Flags Local    Remote\n"
	for text, want := range map[string]string{
		header: "",
		header + " 0 eth0           1       2         3       4 00000 0100007F 00000000\n": "multicast",
	} {
		h, _ := fixture(t, map[string]string{"proc/thread-self/net/ip_mr_vif": text})
		refused, err := h.Refused(selectors(t, "multicast"))
		if got := refused[policy.Selector{Group: true}] != ""; got != (want != "") || err != nil {
			t.Errorf("with %q: refused %v (%v)", text, refused, err)
		}
	}
}

// A flow that the kernel gives a helper by itself must stay tracked, the others need not. Since Linux 6.0 it does so
// with none.
func TestRefusedForHelpers(t *testing.T) {
	enter(t)
	const setting = "proc/sys/net/netfilter/nf_conntrack_helper"
	const ftp = "a conntrack helper watches it: nf_conntrack_ftp"
	watched := map[policy.Selector]string{{Protocol: policy.TCP, Port: 21}: ftp}
	byValue := cmpopts.EquateComparable(netip.Prefix{}, netip.AddrPort{})
	for name, want := range map[string]map[policy.Selector]string{"1": watched, "0": {}, "": {}} {
		files := map[string]string{"sys/module/nf_conntrack_ftp/refcnt": "1\n",
			"sys/module/nf_conntrack/refcnt": "5\n"}
		if name != "" {
			files[setting] = name + "\n"
		}
		h, _ := fixture(t, files)
		refused, err := h.Refused(selectors(t, "tcp/80, tcp/21, udp/5060, echo"))
		if diff := cmp.Diff(want, refused, byValue); diff != "" || err != nil {
			t.Errorf("nf_conntrack_helper %q: refused (-want +got), error %v:\n%s", name, err, diff)
		}
	}
}

// A set of ranges as the kernel lists it: in any order, each element a beginning or an end.
func TestPortsOf(t *testing.T) {
	begin := func(p uint16) element { return element{key: []byte{byte(p >> 8), byte(p)}} }
	end := func(p uint16) element { return element{key: []byte{byte(p >> 8), byte(p)}, end: true} }
	for _, c := range []struct {
		name      string
		intervals bool
		elements  []element
		want      []ports
	}{
		{"single ports", false, []element{begin(80), begin(22)}, []ports{{22, 22}, {80, 80}}},
		{"ranges",
			true, []element{end(9001), begin(9000), end(81), begin(22), end(0)}, []ports{{22, 80}, {9000, 9000}}},
		{"to the last port", true, []element{begin(9000), end(0)}, []ports{{9000, 65535}}},
		{"from the first port", true, []element{begin(0), end(10)}, []ports{{0, 9}}},
		{"none", true, nil, []ports{}},
	} {
		if got, _, ok := portsOf(c.elements, c.intervals); !ok || !slices.Equal(got, c.want) || got == nil {
			t.Errorf("%s: %v %v, want %v", c.name, got, ok, c.want)
		}
	}
	if got, _, ok := portsOf([]element{{key: []byte{1, 2, 3, 4}}}, false); ok {
		t.Errorf("addresses were taken for ports: %v", got)
	}
}
