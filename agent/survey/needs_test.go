package survey

import (
	"maps"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"ctguard/policy"
)

// refusals are the selectors that a host refuses with the reason, sorted.
func refusals(t *testing.T, h *Host, list string) (all []string) {
	t.Helper()
	refused, err := h.Refused(selectors(t, list))
	if err != nil {
		t.Fatal(err)
	}
	for s, reason := range refused {
		all = append(all, s.String()+": "+reason)
	}
	slices.Sort(all)
	return all
}

// each is a list of selectors, all refused for one reason.
func each(list, reason string) (all []string) {
	if list == "" {
		return nil
	}
	for s := range strings.SplitSeq(list, ", ") {
		all = append(all, s+": "+reason)
	}
	slices.Sort(all)
	return all
}

// Parts of rulesets: chains by where packets come.
const (
	tableHome = "table inet home {\n"
	chainPre  = tableHome + " chain pre {\n type filter hook prerouting priority mangle\n"
	chainIn   = tableHome + " chain in {\n type filter hook input priority filter\n"
	chainOut  = tableHome + " chain out {\n type route hook output priority mangle\n"
	chainFwd  = tableHome + " chain passing {\n type filter hook forward priority filter\n"
	chainPost = tableHome + " chain post {\n type filter hook postrouting priority mangle\n"
	chainNAT  = tableHome + " chain nats {\n type nat hook prerouting priority dstnat\n"
	chainONAT = tableHome + " chain local {\n type nat hook output priority -100\n"
)

// What a translation sends to stays tracked, as what it matches does.
func TestRefusedAsTarget(t *testing.T) {
	enter(t, "nft")
	const list = "tcp/80, tcp/8080, tcp/8443, udp/80, udp/5353, echo, multicast, tcp/8080 with 192.0.2.0/24"
	const all = "tcp/80, tcp/8080, tcp/8443, tcp/8080 with 192.0.2.0/24"
	const port80, port8080 = "tcp/80", "tcp/8080, tcp/8080 with 192.0.2.0/24"
	const both = port80 + ", " + port8080
	run(t, "ip route add local 203.0.113.0/28 dev lo")
	for _, c := range []struct{ name, rules, want, chain string }{
		{"redirect", chainNAT + "tcp dport 80 redirect to :8080\n}}", both, "nats"},
		{"redirect of UDP",
			chainNAT + "fib daddr type local udp dport 53 redirect to :5353\n}}", "udp/5353", "nats"},
		{"redirect to a range", chainNAT + "tcp dport 25 redirect to :8000-8100\n}}", port8080, "nats"},
		{"redirect to a range beside", chainNAT + "tcp dport 25 redirect to :8081-8100\n}}", "", ""},
		{"redirect that keeps the port", chainNAT + "tcp dport 80 redirect\n}}", port80, "nats"},
		{"redirect by a map",
			chainNAT + "meta l4proto tcp redirect to :tcp dport map { 80 : 8080 }\n}}", both, "nats"},
		{"dnat to another host", chainNAT + "tcp dport 80 dnat ip to 10.0.0.1:8080\n}}", port80, "nats"},
		{"dnat to hosts", chainNAT + "tcp dport 80 dnat ip to 10.0.0.1-10.0.0.9:8080\n}}", port80, "nats"},
		{"dnat to this host", chainNAT + "tcp dport 80 dnat ip to 198.51.100.1:8080\n}}", both, "nats"},
		{"dnat to hosts, this one among them",
			chainNAT + "tcp dport 80 dnat ip to 198.51.99.0-198.51.101.9:8080\n}}", both, "nats"},
		{"dnat to this host by IPv6", chainNAT + "tcp dport 80 dnat ip6 to [2001:db8:1::1]:8080\n}}", both, "nats"},
		{"dnat to another host by IPv6",
			chainNAT + "tcp dport 80 dnat ip6 to [2001:db8:1::2]:8080\n}}", port80, "nats"},
		{"dnat to loopback", chainNAT + "tcp dport 80 dnat ip to 127.0.0.2:8080\n}}", both, "nats"},
		{"dnat to an address taken by a route",
			chainNAT + "tcp dport 80 dnat ip to 203.0.113.5:8080\n}}", both, "nats"},
		{"dnat that keeps the port", chainNAT + "tcp dport 80 dnat ip to 198.51.100.1\n}}", port80, "nats"},
		{"dnat by a map", chainNAT + "dnat ip to tcp dport map { 80 : 192.0.2.1 . 8080 }\n}}", port80, "nats"},
		{"dnat by a map to this host",
			chainNAT + "dnat ip to tcp dport map { 25 : 198.51.100.1 . 25, 80 : 198.51.100.1 . 8080 }\n}}",
			both, "nats"},
		{"dnat by a map of ranges",
			chainNAT + "dnat ip to tcp dport map { 25 : 198.51.100.1 . 25, 70-90 : 198.51.100.1 . 8080 }\n}}",
			both, "nats"},
		{"dnat by a map of IPv6",
			chainNAT + "dnat ip6 to tcp dport map { 80 : 2001:db8:1::1 . 8080 }\n}}", both, "nats"},
		{"dnat by a map of addresses",
			chainNAT + "dnat ip to ip daddr . tcp dport map { 203.0.113.1 . 25 : 198.51.100.1 . 8080 }\n}}",
			all, "nats"},
		{"dnat by a named map",
			tableHome + " map m {\n type inet_service : ipv4_addr . inet_service\n" +
				" elements = { 80 : 198.51.100.1 . 8080 }\n}\n}\n" +
				chainNAT + "dnat ip to tcp dport map @m\n}}", both, "nats"},
		{"dnat by a map to addresses",
			chainNAT + "dnat ip to tcp dport map { 80 : 192.0.2.1 }\n}}", port80, "nats"},
		{"dnat by lot",
			chainNAT + "tcp dport 80 dnat ip to numgen inc mod 2 map { 0 : 192.0.2.1, 1 : 192.0.2.2 }\n}}",
			port80, "nats"},
		{"dnat by lot with ports",

			chainNAT + "tcp dport 80 dnat ip to numgen inc mod 2 map { 0 : 192.0.2.1 . 80, 1 : 192.0.2.2 . 8080 }\n}}",
			port80, "nats"},
		{"a map to verdicts",
			tableHome + " chain web {\n meta l4proto tcp redirect to :8080\n}\n}\n" +
				chainNAT + "tcp dport vmap { 80 : jump web }\n}}", both, "web"},
		{"a map of ranges to verdicts",
			tableHome + " chain web {\n meta l4proto tcp redirect to :8080\n}\n}\n" +
				chainNAT + "tcp dport vmap { 25 : accept, 70-90 : goto web }\n}}", both, "web"},
		{"a map by address to verdicts",
			tableHome + " chain web {\n tcp dport 80 redirect to :8080\n}\n}\n" +
				chainNAT + "ip daddr vmap { 198.51.100.1 : jump web }\n}}", both, "web"},
		{"of local clients", chainONAT + "tcp dport 80 redirect to :8080\n}}", port80, "local"},
		{"of local clients on lo", chainONAT + "oifname lo tcp dport 80 redirect to :8080\n}}", "", ""},
		{"on lo", chainNAT + "iif lo tcp dport 80 redirect to :8080\n}}", "", ""},
		{"never",
			tableHome + " chain web {\n tcp dport 25 redirect to :8080\n}\n}\n" +
				chainNAT + "tcp dport 80 jump web\n}}", "", ""},
	} {
		feed(t, c.rules)
		h, _ := fixture(t, nil)
		var want []string
		if c.want != "" {
			want = each(c.want, "NAT on this host: chain "+c.chain+" of table home")
		}
		if diff := cmp.Diff(want, refusals(t, h, list)); diff != "" {
			t.Errorf("%s: refused (-want +got):\n%s", c.name, diff)
		}
		h.Close()
	}
}

// What rules do with a connection, other than matching its state, keeps tracked what may meet them.
func TestRefusedForConnection(t *testing.T) {
	enter(t, "nft")
	const (
		list    = "tcp/21, tcp/80, udp/69, echo, multicast, tcp/21 with 192.0.2.0/24, all"
		ftp     = "tcp/21, tcp/21 with 192.0.2.0/24, all"
		mark    = "its connection mark is used by chain "
		objects = tableHome + " ct helper ftp-std {\n type \"ftp\" protocol tcp;\n}\n" +
			" ct helper tftp-std {\n type \"tftp\" protocol udp;\n}\n" +
			" ct timeout short {\n protocol tcp;\n l3proto ip;\n policy = { established: 120 }\n}\n" +
			" ct expectation data {\n protocol tcp;\n dport 9876;\n timeout 2m;\n size 12;\n l3proto ip;\n}\n" +
			" counter hits {\n}\n}\n"
		limited = "its connections are counted by chain "
		newOnly = "its new connections are told apart by their state in chain in"
	)
	for _, c := range []struct{ name, rules, want, reason string }{
		{"a mark that nobody writes", chainPre + "meta mark set ct mark\n}}", "", ""},
		{"a mark, written", chainPre + "tcp dport 21 ct mark set 2\n}}", ftp, mark + "pre"},
		{"a mark, from the packet's", chainPre + "tcp dport 21 ct mark set meta mark\n}}", ftp, mark + "pre"},
		{"a mark, by a set of ports", chainPre + "tcp dport { 20, 21 } ct mark set 2\n}}", ftp, mark + "pre"},
		{"a mark of answers", chainOut + "tcp sport 21 ct mark set 2\n}}", ftp, mark + "out"},
		{"a mark of connections from here",
			chainOut + "tcp dport 443 tcp sport 1024-65535 ct mark set 2\n}}", "all", mark + "out"},
		{"a mark of what is forwarded", chainFwd + "ct mark set 2\n}}", "", ""},
		{"a mark on lo", chainPre + "iif lo ct mark set 2\n}}", "", ""},
		{"a mark in a chain of nat", chainNAT + "tcp dport 21 ct mark set 2\n}}", ftp, mark + "nats"},
		{"a mark, read by all",
			chainPre + "meta mark set ct mark\n}}" + chainFwd + "ct mark set 2\n}}", list, mark + "pre"},
		{"a mark, by a jump",
			tableHome + " chain there {\n ct mark set 2\n}\n}\n" +
				chainPre + "tcp dport 21 jump there\n}}", ftp, mark + "there"},
		{"labels that nobody sets", chainPre + "ct label 1 accept\n}}", "", ""},
		{"labels",
			chainPre + "tcp dport 21 ct label set 1\n}}", ftp, "its connection labels are used by chain pre"},
		{"a helper",
			objects + chainPre + "tcp dport 21 ct helper set ftp-std\n}}",
			ftp, "a conntrack helper is assigned by chain pre"},
		{"helpers by a map",
			objects + chainPre + "ct helper set tcp dport map { 21 : \"ftp-std\", 2121 : \"ftp-std\" }\n}}",
			ftp, "a conntrack helper is assigned by chain pre"},
		{"a helper of any port",
			objects + chainPre + "meta l4proto udp ct helper set tftp-std\n}}", "udp/69, multicast, all",
			"a conntrack helper is assigned by chain pre"},
		{"a helper, defined only", objects + chainPre + "counter name hits\n}}", "", ""},
		{"counters by a map", objects + chainPre + "counter name tcp dport map { 21 : \"hits\" }\n}}", "", ""},
		{"a helper, matched", chainIn + "ct helper \"ftp\" accept\n}}", "", ""},
		{"a timeout",
			objects + chainPre + "tcp dport 21 ct timeout set \"short\"\n}}",
			ftp, "its conntrack timeouts are set by chain pre"},
		{"an expectation",
			objects + chainPre + "tcp dport 21 ct expectation set \"data\"\n}}",
			ftp, "connections to come are announced by chain pre"},
		{"a zone", chainPre + "tcp dport 21 ct zone set 5\n}}", ftp, "its conntrack zone is set by chain pre"},
		{"events",
			chainPre + "tcp dport 21 ct event set new,destroy\n}}",
			ftp, "its conntrack events are chosen by chain pre"},
		{"a count", chainIn + "tcp dport 21 ct count over 10 drop\n}}", ftp, limited + "in"},
		{"a count for each source",
			chainIn + "tcp dport 21 meter m { ip saddr ct count over 10 } drop\n}}", ftp, limited + "in"},
		{"a count in a set",
			tableHome + " set s {\n type ipv4_addr\n size 100\n flags dynamic\n ct count over 10\n}\n}\n" +
				chainIn + "tcp dport 21 add @s { ip saddr } drop\n}}", ftp, limited + "in"},
		{"a set that packets fill",
			tableHome + " set s {\n type ipv4_addr\n size 100\n flags dynamic\n}\n}\n" +
				chainIn + "tcp dport 21 add @s { ip saddr limit rate over 3/minute } drop\n}}", "", ""},
		{"a limit for new connections",
			tableHome + " set s {\n type ipv4_addr\n size 100\n flags dynamic\n}\n}\n" +
				chainIn + "tcp dport 21 ct state new add @s { ip saddr limit rate over 3/minute } drop\n}}", "tcp/21, all",
			newOnly},
		{"new connections of one family",
			chainIn + "tcp dport 21 meta nfproto ipv6 ct state new accept\n}}",
			"tcp/21, tcp/21 with 192.0.2.0/24, all", newOnly},
		{"new connections, sorted by a chain",
			tableHome + " chain fresh {\n}\n}\n" + chainIn + "udp dport 69 ct state new jump fresh\n}}",
			"udp/69, multicast, all", newOnly},
		{"new connections that are refused",
			chainIn + "ip saddr 192.0.2.7 tcp dport 21 ct state new reject\n}}", "tcp/21, all", newOnly},
		{"VRRP", chainIn + "ip protocol vrrp ct state new accept\n}}", "multicast, all", newOnly},
		{"untracked packets, too",
			chainIn + "tcp dport 21 ct state new,untracked accept\nct state { new, untracked } accept\n}}", "", ""},
		{"whatever is new", chainIn + "ct state new accept\n}}", "", ""},
		{"segments that open nothing",
			chainIn + "ct state new tcp flags & (fin|syn|rst|ack) != syn drop\nct state new tcp flags != syn drop\n}}", "",
			""},
		{"new connections to elsewhere", chainFwd + "tcp dport 21 ct state new accept\n}}", "", ""},
		{"bytes",
			chainIn + "tcp dport 21 ct bytes > 100000 drop\n}}",
			ftp, "what its connections carry is counted by chain in"},
		{"states",

			chainIn + "ct state vmap { established : accept, related : accept, invalid : drop }\n" +
				"ct state established,related accept\nct status dnat accept\n}}", "", ""},
		{"addresses of the connection",
			chainIn + "meta l4proto tcp ct original proto-dst 21 accept\nct direction reply accept\n}}", "", ""},
		{"the host's own notrack",
			tableHome + " chain pre {\n type filter hook prerouting priority raw\n tcp dport 21 notrack\n}\n}\n", "",
			""},
		{"synproxy",
			chainIn + "tcp dport 21 ct state invalid,untracked synproxy mss 1460 wscale 7 timestamp sack-perm\n}}",
			ftp, "its connections are opened by synproxy in chain in"},
		{"a mark of the packet", chainPre + "tcp dport 21 meta mark set 2\n}}", "", ""},
		{"a mark by state, that nothing routes by",
			chainPre + "tcp dport 21 ct state new meta mark set 2\n}}", "", ""},
		{"ctguard's own table",
			"table inet ctguard {\n chain pre {\n type filter hook prerouting priority mangle\n ct mark set 2\n}}",
			"", ""},
	} {
		feed(t, c.rules)
		h, _ := fixture(t, nil)
		if diff := cmp.Diff(each(c.want, c.reason+" of table home"), refusals(t, h, list)); diff != "" {
			t.Errorf("%s: refused (-want +got):\n%s", c.name, diff)
		}
		if zones, err := h.SetsZones(); err != nil || zones != strings.Contains(c.reason, "zone") {
			t.Errorf("%s: sets zones: %v, %v", c.name, zones, err)
		}
		h.Close()
	}
}

// Where rules assign helpers, what listens on an ephemeral port may be what a helper expects.
func TestRefusedForExpected(t *testing.T) {
	enter(t, "nft")
	const list = "tcp/2000, tcp/33000, udp/33000, tcp/32000-33000"
	helper := tableHome + " ct helper ftp-std {\n type \"ftp\" protocol tcp;\n}\n}\n"
	why := "a conntrack helper may expect connections to this ephemeral port: chain pre of table home"
	for rules, want := range map[string]string{
		helper: "",
		helper + chainPre + "tcp dport 21 ct helper set ftp-std\n}}": "tcp/33000",
	} {
		feed(t, rules)
		h, _ := fixture(t, map[string]string{"proc/sys/net/ipv4/ip_local_port_range": "32768 60999\n"})
		if diff := cmp.Diff(each(want, why), refusals(t, h, list)); diff != "" {
			t.Errorf("%s: refused (-want +got):\n%s", rules, diff)
		}
		h.Close()
	}
}

// Where packets are routed by their mark, a mark that depends on the state of their connection matters.
func TestRefusedForMarkByState(t *testing.T) {
	enter(t, "nft")
	run(t, "ip rule add fwmark 2 lookup 102")
	const list, why = "tcp/21, tcp/80, udp/69", "its packets are marked by the state of their connection in chain "
	for _, c := range []struct{ name, rules, want, chain string }{
		{"no connection", chainPre + "tcp dport 21 meta mark set 2\n}}", "", ""},
		{"a state", chainPre + "tcp dport 21 ct state new meta mark set 2\n}}", "tcp/21", "pre"},
		{"a direction", chainOut + "ct direction reply tcp sport 21 meta mark set 2\n}}", "tcp/21", "out"},
		{"a jump",
			tableHome + " chain there {\n tcp dport 21 meta mark set 2\n}\n}\n" +
				chainPre + "ct state new jump there\n}}", "tcp/21", "there"},
		{"those that are left",
			chainPre + "ct state established,related accept\ntcp dport 21 meta mark set 2\n}}", "tcp/21", "pre"},
		{"those that are left after a map",
			chainPre + "ct state vmap { established : accept }\ntcp dport 21 meta mark set 2\n}}", "tcp/21", "pre"},
		{"what is forwarded", chainFwd + "ct state new meta mark set 2\n}}", "", ""},
		{"after routing",
			chainIn + "ct state new meta mark set 2\n}}" + chainPost + "ct state new meta mark set 2\n}}", "", ""},
		{"a filter and a mark",
			chainIn + "ct state established accept\n}}" + chainPre + "meta mark set 2\n}}", "", ""},
	} {
		feed(t, c.rules)
		h, _ := fixture(t, nil)
		if diff := cmp.Diff(each(c.want, why+c.chain+" of table home"), refusals(t, h, list)); diff != "" {
			t.Errorf("%s: refused (-want +got):\n%s", c.name, diff)
		}
		h.Close()
	}
}

// The same rules as iptables-nft writes them.
func TestRefusedForIptablesExtensions(t *testing.T) {
	enter(t, "iptables-nft", "ip6tables-nft", "nft")
	const (
		list = "tcp/21, tcp/80, tcp/8080, udp/69"
		nat  = "NAT on this host: chain PREROUTING of table nat"
		tcp  = "tcp/21, tcp/80, tcp/8080"
	)
	in := func(table, chain string) string { return "chain " + chain + " of table " + table }
	for _, c := range []struct{ rules, want, why string }{
		{"nat -A PREROUTING -p tcp --dport 90 -j REDIRECT --to-ports 8080",
			"tcp/8080", nat},
		{"nat -A PREROUTING -p tcp --dport 90 -j REDIRECT --to-ports 8000-8090",
			"tcp/8080", nat},
		{"nat -A PREROUTING -p tcp --dport 80 -j REDIRECT",
			"tcp/80", nat},
		{"nat -A PREROUTING -p tcp --dport 90 -j DNAT --to-destination 10.0.0.1:8080", "", ""},
		{"nat -A PREROUTING -p tcp --dport 90 -j DNAT --to-destination 198.51.100.1:8080",
			"tcp/8080", nat},
		{"nat -A PREROUTING -p tcp --dport 90 -j DNAT --to-destination 127.0.0.1:8080",
			"tcp/8080", nat},
		{"nat -A PREROUTING -p tcp --dport 90:99 -j DNAT --to-destination 198.51.100.1:8080-8089/90",
			"tcp/8080", nat},
		{"nat -A PREROUTING -p tcp --dport 90 -j DNAT --to-destination 198.51.100.1", "", ""},
		{"nat -A OUTPUT -o lo -p tcp --dport 80 -j REDIRECT --to-ports 8080", "", ""},
		{"6 nat -A PREROUTING -p tcp --dport 90 -j REDIRECT --to-ports 8080",
			"tcp/8080", nat},
		{"6 nat -A PREROUTING -p tcp --dport 90 -j DNAT --to-destination [2001:db8:1::1]:8080",
			"tcp/8080", nat},
		{"6 nat -A PREROUTING -p tcp --dport 90 -j DNAT --to-destination [2001:db8:1::2]:8080", "", ""},
		{"mangle -A PREROUTING -j CONNMARK --restore-mark", "", ""},
		{"mangle -A PREROUTING -p tcp --dport 21 -j CONNMARK --save-mark",
			"tcp/21", "its connection mark is used by " + in("mangle", "PREROUTING")},
		{"mangle -A PREROUTING -p tcp --dport 21 -j CONNMARK --set-mark 2",
			"tcp/21", "its connection mark is used by " + in("mangle", "PREROUTING")},
		{"mangle -A OUTPUT -p tcp --sport 21 -j CONNMARK --set-xmark 2/0xff",
			"tcp/21", "its connection mark is used by " + in("mangle", "OUTPUT")},
		{"mangle -A FORWARD -j CONNMARK --set-mark 2 + mangle -A OUTPUT -p tcp -j CONNMARK --restore-mark",
			tcp, "its connection mark is used by " + in("mangle", "OUTPUT")},
		{"mangle -A FORWARD -j CONNMARK --set-mark 2 + filter -A INPUT -p tcp -m connmark --mark 2 -j ACCEPT",
			tcp, "its connection mark is used by " + in("filter", "INPUT")},
		{"raw -A PREROUTING -p tcp --dport 21 -j CT --helper ftp",
			"tcp/21", "a conntrack helper is assigned by " + in("raw", "PREROUTING")},
		{"raw -A PREROUTING -p tcp --dport 21 -j CT --zone 3",
			"tcp/21", "its conntrack zone is set by " + in("raw", "PREROUTING")},
		{"raw -A PREROUTING -p tcp --dport 21 -j CT --ctevents new",
			"tcp/21", "its conntrack events are chosen by " + in("raw", "PREROUTING")},
		{"raw -A PREROUTING -p tcp --dport 21 -j CT --notrack", "", ""},
		{"raw -A PREROUTING -p tcp --dport 21 -j NOTRACK", "", ""},
		{"filter -A INPUT -p tcp --dport 21 -m connlimit --connlimit-above 9 -j DROP",
			"tcp/21", "its connections are counted by " + in("filter", "INPUT")},
		{"filter -A INPUT -p tcp --dport 21 -m connbytes --connbytes 9: --connbytes-dir both " +
			"--connbytes-mode bytes -j DROP",
			"tcp/21", "what its connections carry is counted by " + in("filter", "INPUT")},
		{"filter -A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT + " +
			"filter -A INPUT -m state --state NEW -j ACCEPT", "", ""},
		{"filter -A INPUT -p tcp --dport 21 -m state --state NEW -m recent --name x --update --hitcount 4 -j DROP",
			"tcp/21", "its new connections are told apart by their state in " + in("filter", "INPUT")},
		{"filter -A INPUT -p tcp --dport 21 -m conntrack --ctstate NEW,ESTABLISHED -j ACCEPT",
			"tcp/21", "its new connections are told apart by their state in " + in("filter", "INPUT")},
		{"6 filter -A INPUT -p tcp --dport 21 -m conntrack --ctstate NEW -j REJECT",
			"tcp/21", "its new connections are told apart by their state in " + in("filter", "INPUT")},
		{"filter -A INPUT -p tcp --dport 21 -m conntrack --ctstate NEW,UNTRACKED -j ACCEPT", "", ""},
		{"filter -A INPUT -p tcp ! --syn -m conntrack --ctstate NEW -j DROP", "", ""},
		{"filter -A INPUT -p tcp --dport 21 -m recent --name x --set + " +
			"filter -A INPUT -p tcp -j REJECT --reject-with tcp-reset", "", ""},
		{"mangle -A FORWARD -p tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu + " +
			"mangle -A OUTPUT -j DSCP --set-dscp 8", "", ""},
		{"security -A INPUT -p tcp --dport 21 -j CONNSECMARK --save",
			"tcp/21", "the security mark of its connections is used by " + in("security", "INPUT")},
	} {
		feed(t, "")
		for one := range strings.SplitSeq(c.rules, " + ") {
			program := "iptables-nft -t "
			if rest, six := strings.CutPrefix(one, "6 "); six {
				program, one = "ip6tables-nft -t ", rest
			}
			run(t, program+one)
		}
		h, _ := fixture(t, nil)
		if diff := cmp.Diff(each(c.want, c.why), refusals(t, h, list)); diff != "" {
			t.Errorf("%s: refused (-want +got):\n%s", c.rules, diff)
		}
		h.Close()
	}
}

// Rules of iptables-legacy that need a connection count for everything, others for nothing.
func TestRefusedForLegacyNeeds(t *testing.T) {
	enter(t, "iptables-legacy", "ip6tables-legacy")
	const list = "tcp/21, udp/69, echo"
	h := New("/")
	defer h.Close()
	for _, c := range []struct{ rule, undo, want string }{
		{"-t filter -A INPUT -p tcp --dport 80 -m conntrack --ctstate NEW,ESTABLISHED -j ACCEPT",
			"-t filter -F", ""},
		{"-t filter -A INPUT -m recent --name x --set -j LOG", "-t filter -F", ""},
		{"-t mangle -A PREROUTING -j CONNMARK --restore-mark", "-t mangle -F", ""},
		{"-t mangle -A PREROUTING -j CONNMARK --save-mark",
			"-t mangle -F", "its connection mark is used by table mangle"},
		{"-t raw -A PREROUTING -p tcp --dport 21 -j CT --helper ftp",
			"-t raw -F", "a conntrack helper is assigned by table raw"},
		{"-t raw -A PREROUTING -p tcp --dport 21 -j CT --notrack", "-t raw -F", ""},
		{"-t filter -A INPUT -p tcp --syn -m connlimit --connlimit-above 9 -j DROP",
			"-t filter -F", "its connections are counted by table filter"},
		{"-t mangle -A PREROUTING -m conntrack --ctstate NEW -j MARK --set-mark 2", "-t mangle -F", ""},
		{"-t raw -N there", "-t raw -X", ""},
	} {
		for _, program := range []string{"iptables-legacy ", "ip6tables-legacy "} {
			run(t, program+c.rule)
			var want []string
			if c.want != "" {
				want = each(list, c.want+" of iptables-legacy")
			}
			if diff := cmp.Diff(want, refusals(t, h, list)); diff != "" {
				t.Errorf("%s%s: refused (-want +got):\n%s", program, c.rule, diff)
			}
			run(t, program+c.undo)
		}
	}
	run(t, "ip rule add fwmark 2 lookup 102",
		"iptables-legacy -t mangle -A PREROUTING -m conntrack --ctstate NEW -j MARK --set-mark 2")
	why := "its packets are marked by the state of their connection in table mangle of iptables-legacy"
	if diff := cmp.Diff(each(list, why), refusals(t, h, list)); diff != "" {
		t.Errorf("a mark by state: refused (-want +got):\n%s", diff)
	}
}

// Rules of ebtables see frames on a bridge, not connections.
func TestNotRefusedForBridges(t *testing.T) {
	enter(t, "ebtables-nft")
	run(t, "ebtables-nft -t nat -A PREROUTING -p IPv4 -j redirect", "ebtables-nft -A INPUT -j mark --mark-or 1")
	h, _ := fixture(t, nil)
	defer h.Close()
	if got := refusals(t, h, "tcp/21, udp/69, echo"); len(got) > 0 {
		t.Errorf("refused: %q", got)
	}
}

// What is opened in place of a service or sent elsewhere can't be put behind synproxy, nor what has a mark.
func TestUnproxiedForConnection(t *testing.T) {
	enter(t, "nft")
	list := selectors(t, "tcp/80, tcp/8080")
	for rules, want := range map[string]string{
		chainNAT + "tcp dport 80 redirect to :8080\n}}":  "tcp/80, tcp/8080",
		chainPre + "tcp dport 80 ct mark set 2\n}}":      "tcp/80",
		chainFwd + "tcp dport 80 ct mark set 2\n}}":      "",
		chainONAT + "tcp dport 80 redirect to :8080\n}}": "",
	} {
		feed(t, rules)
		h := New("/")
		got, err := h.Unproxied(list)
		if err != nil {
			t.Fatal(err)
		}
		names := slices.SortedFunc(maps.Keys(got), func(a, b policy.Selector) int { return int(a.Port) - int(b.Port) })
		var texts []string
		for _, s := range names {
			texts = append(texts, s.String())
		}
		if diff := cmp.Diff(want, strings.Join(texts, ", ")); diff != "" {
			t.Errorf("%s: (-want +got):\n%s", rules, diff)
		}
		h.Close()
	}
}

// A host whose rules may refuse its own packets is told from one that only watches or translates them.
func TestFiltersOutput(t *testing.T) {
	enter(t, "nft", "iptables-nft")
	output := func(kind, policy, rule string) string {
		return tableHome + " chain out {\n type " + kind + " hook output priority 0; policy " + policy + ";\n" + rule + "\n}}"
	}
	for _, c := range []struct {
		name, rules string
		want        bool
	}{
		{"nothing", tableHome + "}", false},
		{"accepts all", output("filter", "accept", "counter"), false},
		{"refuses the rest", output("filter", "drop", "ct state established accept"), true},
		{"rejects the rest", output("filter", "accept", "ct state established accept\nreject"), true},
		{"translates", output("nat", "accept", "tcp dport 80 dnat ip to 192.0.2.9"), false},
		{"filters what comes in", chainIn + "drop\n}}", false},
		{"ctguard's own", "table inet ctguard {\n chain out {\n type filter hook output priority 0; policy drop;\n}}", false},
	} {
		feed(t, c.rules)
		h, _ := fixture(t, nil)
		if got, err := h.FiltersOutput(); err != nil || got != c.want {
			t.Errorf("%s: %v, %v", c.name, got, err)
		}
		h.Close()
	}
	run := exec.Command("iptables-nft", "-P", "OUTPUT", "DROP")
	feed(t, "")
	if out, err := run.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	h, _ := fixture(t, nil)
	defer h.Close()
	if got, err := h.FiltersOutput(); err != nil || !got {
		t.Errorf("iptables -P OUTPUT DROP: %v, %v", got, err)
	}
}

// Where a filter lets connections in by their SYN alone, none is picked up in its middle: rules that accept SYNs, or
// drop what is none, of nft and of iptables; not rules that only hold SYNs back.
func TestBySYN(t *testing.T) {
	enter(t, "nft", "iptables-nft")
	in := func(rule string) string { return chainIn + rule + "\n}}" }
	found := func(what string, want bool) {
		t.Helper()
		h, _ := fixture(t, nil)
		defer h.Close()
		if got, err := h.BySYN(); err != nil || (got != "") != want {
			t.Errorf("%s: %q, %v", what, got, err)
		}
	}
	for rules, want := range map[string]bool{
		"": false,
		in("ct state established accept\ntcp dport 80 accept"):                            false,
		in("tcp dport 80 ct state new accept"):                                            false,
		in("tcp flags & (fin|syn|rst|ack) != syn ct state new drop"):                      true,
		in("tcp flags ! syn ct state new reject"):                                         true,
		in("tcp dport 80 tcp flags & (fin|syn|rst|ack) == syn accept"):                    true,
		in("tcp flags syn tcp dport 80 ct state new accept"):                              true,
		in("tcp flags syn limit rate over 100/second drop"):                               false,
		in("tcp flags & (fin|syn) == fin|syn drop"):                                       false,
		chainFwd + "tcp flags & (fin|syn|rst|ack) == syn accept\n}}":                      false,
		chainPre + "tcp flags & (fin|syn|rst|ack) != syn ct state new drop\n}}":           true,
		chainPost + "tcp flags syn tcp option maxseg size set rt mtu\n}}":                 false,
		chainIn + "tcp flags & (syn|rst) == syn jump seen\n}\nchain seen {\naccept\n}}\n": true,
	} {
		feed(t, rules)
		found(rules, want)
	}
	for rule, want := range map[string]bool{
		"-p tcp ! --syn -m conntrack --ctstate NEW -j DROP":                true,
		"-p tcp --syn --dport 80 -m state --state NEW -j ACCEPT":           true,
		"-p tcp --dport 80 -m conntrack --ctstate NEW -j ACCEPT":           false,
		"-p tcp --syn -m limit --limit 9/s -j RETURN":                      false,
		"-p tcp --tcp-flags ALL FIN,PSH,URG -j DROP":                       false,
		"-p tcp --syn --dport 80 -m connlimit --connlimit-above 9 -j DROP": false,
	} {
		feed(t, "")
		add := exec.Command("iptables-nft", append([]string{"-A", "INPUT"}, strings.Fields(rule)...)...)
		if out, err := add.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		found(rule, want)
	}
}
