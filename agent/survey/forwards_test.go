package survey

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// enterGateway makes a gateway with clients behind wan0 and inside hosts behind lan0.
func enterGateway(t *testing.T, programs ...string) {
	t.Helper()
	enter(t, programs...)
	run(t, "ip link add wan0 type veth peer name wan1", "ip link add lan0 type veth peer name lan1",
		"ip link set wan1 up", "ip link set lan1 up", "ip address add 203.0.113.7/24 dev wan0",
		"ip address add 10.0.0.1/24 dev lan0", "ip address add 2001:db8:7::1/64 dev wan0 nodad",
		"ip address add fd00::1/64 dev lan0 nodad", "ip link set wan0 up", "ip link set lan0 up",
		"ip link del world", "ip route add default via 203.0.113.254", "ip -6 route add default via 2001:db8:7::fe dev wan0")
	settle(t)
}

// forwardedBy lists the forwarded services with why they are refused.
func forwardedBy(t *testing.T) string {
	t.Helper()
	h, _ := fixture(t, nil)
	defer h.Close()
	found, err := h.Forwarded()
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for _, s := range found.Services {
		text := s.String()
		if found.Refused[s] != "" {
			text += ": " + found.Refused[s]
		}
		list = append(list, text)
	}
	return strings.Join(list, "\n")
}

// Rules that can be repeated become selectors, the others are refused or have no name.
func TestForwarded(t *testing.T) {
	enterGateway(t, "nft")
	const (
		pre  = "table inet home {\n chain nats {\n type nat hook prerouting priority dstnat\n"
		post = "table inet home {\n chain post {\n type nat hook postrouting priority srcnat\n"
		fwd  = "table inet home {\n chain forw {\n type filter hook forward priority filter\n"
		web  = "iifname wan0 ip daddr 203.0.113.7 tcp dport 443 dnat ip to 10.0.0.2:8443\n"
		name = "tcp/443 at 203.0.113.7/32 on wan0 to 10.0.0.2:8443 by wan0"
		nats = "chain nats of table home"

		stateful = ": its packets are let in by the state of their connections alone, in chain forw of table home"
	)
	chain := func(what string) string { return "chain " + what + " of table home" }
	for _, c := range []struct{ name, rules, want string }{
		{"one port", pre + web + "}}", name},
		{"by index", pre + "iif wan0 ip daddr 203.0.113.7 tcp dport 443 counter dnat ip to 10.0.0.2:8443\n}}", name},
		{"with masquerade outwards", pre + web + "}}" + post + "oifname wan0 masquerade\n}}", name},
		{"with masquerade of the inside", pre + web + "}}" + post + "ip saddr 10.0.0.0/24 masquerade\n}}", name},
		{"masquerade of everything", pre + web + "}}" + post + "masquerade\n}}",
			name + ": its clients' addresses may be translated: " + chain("post")},
		{"masquerade of others", pre + web + "}}" + post + "ip saddr 198.51.100.0/24 masquerade\n}}",
			name + ": its clients' addresses may be translated: " + chain("post")},
		{"masquerade towards it", pre + web + "}}" + post + "ip daddr 10.0.0.2 tcp dport 8443 masquerade\n}}",
			name + ": its clients' addresses may be translated: " + chain("post")},
		{"masquerade towards another port", pre + web + "}}" + post + "ip daddr 10.0.0.2 tcp dport 80 masquerade\n}}", name},
		{"sources", pre + "ip saddr 198.51.100.0/24 " + web + "}}",
			"tcp/443 with 198.51.100.0/24 at 203.0.113.7/32 on wan0 to 10.0.0.2:8443 by wan0"},
		{"any interface", pre + "ip daddr 203.0.113.7 tcp dport 443 dnat ip to 10.0.0.2\n}}",
			"tcp/443 at 203.0.113.7/32 to 10.0.0.2:443 by wan0"},
		{"any own address", pre + "fib daddr type local udp dport 53 dnat ip to 10.0.0.2:5353\n}}",
			"udp/53 at 203.0.113.7/32 to 10.0.0.2:5353 by wan0"},
		{"several ports", pre + "iifname wan0 tcp dport { 80, 443 } dnat ip to 10.0.0.2\n}}",
			"tcp/443 at 203.0.113.7/32 on wan0 to 10.0.0.2:443 by wan0\n" +
				"tcp/80 at 203.0.113.7/32 on wan0 to 10.0.0.2:80 by wan0"},
		{"a range", pre + "iifname wan0 udp dport 10000-20000 dnat ip to 10.0.0.2\n}}",
			"udp/10000-20000 at 203.0.113.7/32 on wan0 to 10.0.0.2:10000 by wan0"},
		{"IPv6", pre + "iifname wan0 ip6 daddr 2001:db8:7::1 udp dport 53 dnat ip6 to [fd00::2]:5353\n}}",
			"udp/53 at 2001:db8:7::1/128 on wan0 to [fd00::2]:5353 by wan0"},
		{"a chain of its own", "table inet home {\n chain web {\n" + web + "}\n}\n" +
			pre + "fib daddr type local jump web\n}}", name},
		{"an earlier exception", pre + "ip saddr 198.51.100.0/24 accept\n" + web + "}}",
			name + ": another rule may take some of it: " + nats},
		{"an exception elsewhere", pre + "iifname lan0 accept\n" + web + "}}", name},
		{"an exception for another port", pre + "tcp dport 80 accept\n" + web + "}}", name},
		{"a set of sources", pre + "ip saddr { 198.51.100.1, 198.51.100.9 } " + web + "}}",
			name + ": there is more to its rule than can be repeated: " + nats},
		{"a limit", pre + "limit rate 5/second " + web + "}}",
			name + ": there is more to its rule than can be repeated: " + nats},
		{"a part of the interfaces", pre + "iifname \"wan*\" tcp dport 443 dnat ip to 10.0.0.2\n}}",
			"tcp/443 at 203.0.113.7/32 to 10.0.0.2:443 by wan0: there is more to its rule than can be repeated: " + nats},
		{"several inside hosts", pre + "iifname wan0 tcp dport 443 dnat ip to 10.0.0.2-10.0.0.9\n}}", ""},
		{"in turn", pre + "iifname wan0 tcp dport 443 dnat ip to numgen inc mod 2 map " +
			"{ 0 : 10.0.0.2, 1 : 10.0.0.3 }\n}}", ""},
		{"by a hash", pre + "iifname wan0 tcp dport 443 dnat ip to jhash ip saddr mod 2 map " +
			"{ 0 : 10.0.0.2, 1 : 10.0.0.3 }\n}}", ""},
		{"random ports", pre + "iifname wan0 tcp dport 443 dnat ip to 10.0.0.2:8000-8009 random\n}}", ""},
		{"a map beside it", pre + web + "iifname wan0 dnat ip to tcp dport map { 444 : 10.0.0.2 }\n}}",
			name + ": another rule may lead to the same port of the inside host: " + nats},
		{"two ports for one", pre + web + "iifname wan0 tcp dport 444 dnat ip to 10.0.0.2:8443\n}}",
			strings.Join([]string{name, strings.Replace(name, "443", "444", 1)}, ": another rule may lead to the same port of "+
				"the inside host: "+nats+"\n") + ": another rule may lead to the same port of the inside host: " + nats},
		{"hairpin", pre + "iifname lan0 ip daddr 203.0.113.7 tcp dport 443 dnat ip to 10.0.0.2:8443\n}}",
			"tcp/443 at 203.0.113.7/32 on lan0 to 10.0.0.2:8443 by lan0: " +
				"the inside host is reached by way of lan0, as clients are"},
		{"no address of this host", pre + "ip daddr 203.0.113.9 tcp dport 443 dnat ip to 10.0.0.2\n}}",
			"tcp/443 at 203.0.113.9/32 to 10.0.0.2:443 by wan0: 203.0.113.9 is no address of this host"},
		{"a mark of the connection", pre + web + "}}" + fwd + "tcp dport 8443 ct mark set 2\n}}",
			name + ": its connection mark is used by " + chain("forw")},
		{"a mark of another", pre + web + "}}" + fwd + "tcp dport 80 ct mark set 2\n}}", name},
		{"a count", pre + web + "}}" + fwd + "ct count over 10 drop\n}}",
			name + ": its connections are counted by " + chain("forw")},
		{"a state", pre + web + "}}" + fwd + "ct state established accept\nct status dnat accept\ndrop\n}}", name + stateful},
		{"a state, by policy", pre + web + "}}" + fwd + "policy drop\n" +
			"ct state vmap { established : accept, invalid : drop }\n" +
			"iifname lan0 accept\nct state new,established tcp dport 8443 accept\ntcp dport 8444 accept\n}}", name + stateful},
		{"a state, in the other family", pre + web + "}}" +
			"table ip6 other {\nchain forw {\ntype filter hook forward priority 0; policy drop\nct state established accept\n}}",
			name},
		{"a state, rejected", pre + web + "}}" + fwd + "ct state established,related accept\n" +
			"meta l4proto tcp ct original proto-dst 443 accept\n" +
			"ip saddr 198.51.100.0/24 tcp dport 8443 drop\nreject\naccept\n}}", name + stateful},
		{"a state, or the port", pre + web + "}}" + fwd + "policy drop\nct state established accept\n" +
			"tcp dport 8443 accept\n}}", name},
		{"a state, or none", pre + web + "}}" + fwd + "policy drop\nct state established,untracked accept\n}}", name},
		{"a state, or some sources", pre + web + "}}" + fwd + "policy drop\nct state established accept\n" +
			"ip saddr { 198.51.100.1, 198.51.100.9 } accept\n}}", name},
		{"a state, or by another chain",
			"table inet home {\n chain web {\n tcp dport 8443 accept\n}\n}\n" + pre + web + "}}" + fwd +
				"policy drop\nct state established accept\niifname wan0 jump web\n}}", name},
		{"some refused", pre + web + "}}" + fwd + "ct state established accept\nip saddr 198.51.100.0/24 drop\n}}", name},
		{"new connections of some refused", pre + web + "}}" + fwd + "ip saddr 198.51.100.0/24 ct state new drop\n}}",
			name + ": its new connections may be refused by their state in " + chain("forw")},
		{"new connections limited", pre + web + "}}" + fwd + "ct state new tcp dport 8443 limit rate over 5/second drop\n}}",
			name + ": its new connections may be refused by their state in " + chain("forw")},
		{"new connections sorted", "table inet home {\n chain check {\n}\n}\n" + pre + web + "}}" + fwd +
			"ct state new jump check\n}}", name + ": its new connections may be refused by their state in " + chain("forw")},
		{"new connections refused before", pre + web + "}}" + chainPre + "ip saddr 198.51.100.0/24 ct state new drop\n}}",
			name + ": its new connections may be refused by their state in " + chain("pre")},
		{"new connections accepted", pre + web + "}}" + fwd + "iifname lan0 ct state new accept\n}}", name},
		{"new connections and untracked ones refused", pre + web + "}}" + fwd +
			"ip saddr 198.51.100.0/24 ct state new,untracked drop\n}}", name},
		{"new connections of another port refused", pre + web + "}}" + fwd + "tcp dport 22 ct state new drop\n}}", name},
		{"merely routed", fwd + "iifname wan0 ip daddr 198.51.100.5 tcp dport 443 accept\n}}",
			"tcp/443 at 198.51.100.5/32 on wan0 to 198.51.100.5:443 by wan0"},
		{"translated and let through", pre + web + "}}" + fwd + "ip daddr 10.0.0.2 tcp dport 8443 accept\n}}", name},
		{"routed, and a map", pre + "iifname wan0 dnat ip to tcp dport map { 444 : 198.51.100.5 }\n}}" +
			fwd + "iifname wan0 ip daddr 198.51.100.5 tcp dport 443 accept\n}}",
			"tcp/443 at 198.51.100.5/32 on wan0 to 198.51.100.5:443 by wan0: another rule may take some of it: " + nats},
		{"no rules", "", ""},
	} {
		run(t, "ip route replace 198.51.100.5/32 dev lan0")
		feed(t, c.rules)
		if diff := cmp.Diff(c.want, forwardedBy(t)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, diff)
		}
	}
	feed(t, pre+web+"}}")
	run(t, "ip rule add from 10.0.0.2 lookup 102")
	want := name + ": policy routing: rules choose among routing tables"
	if diff := cmp.Diff(want, forwardedBy(t)); diff != "" {
		t.Errorf("policy routing (-want +got):\n%s", diff)
	}
	run(t, "ip rule del from 10.0.0.2 lookup 102", "ip address add 203.0.113.8/24 dev wan0")
	feed(t, pre+"iifname wan0 tcp dport 443 dnat ip to 10.0.0.2\n}}")
	want = "tcp/443 at 203.0.113.7/32 on wan0 to 10.0.0.2:443 by wan0: its rule names no address, and wan0 has several"
	if diff := cmp.Diff(want, forwardedBy(t)); diff != "" {
		t.Errorf("two addresses (-want +got):\n%s", diff)
	}
}

// TestUnproxiedInside: what synproxy can't do for a service of an inside host, and what notrack alone can't.
func TestUnproxiedInside(t *testing.T) {
	enterGateway(t, "nft")
	const (
		pre = "table inet home {\n chain nats {\n type nat hook prerouting priority dstnat\n"
		fwd = "table inet home {\n chain forw {\n type filter hook forward priority filter\n"
		web = "iifname wan0 ip daddr 203.0.113.7 tcp dport 443 dnat ip to 10.0.0.2:8443\n"
	)
	for _, c := range []struct{ name, rules, want string }{
		{"one port", pre + web + "}}", ""},
		{"a filter by state", pre + web + "}}" + fwd + "policy drop\nct status dnat accept\n}}", ""},
		{"new connections refused", pre + web + "}}" + fwd + "ip saddr 198.51.100.0/24 ct state new drop\n}}", ""},
		{"a mark", pre + web + "}}" + fwd + "tcp dport 8443 ct mark set 2\n}}",
			"its connection mark is used by chain forw of table home"},
		{"a limit", pre + "limit rate 5/second " + web + "}}",
			"there is more to its rule than can be repeated: chain nats of table home"},
		{"routed", fwd + "ip daddr 198.51.100.5 tcp dport 443 accept\n}}",
			"it is merely routed: cookies for it would not come back to this host itself"},
		{"by other sources", pre + "ip saddr 198.51.100.0/25 tcp dport 443 dnat ip to 10.0.0.2\n" +
			"ip saddr 198.51.100.128/25 ip daddr 203.0.113.7 tcp dport 443 dnat ip to 10.0.0.3\n}}", ""},
		{"by another interface", pre + web + "iifname lan0 ip daddr 203.0.113.7 tcp dport 443 dnat ip to 10.0.0.3\n}}",
			"tcp/443 at 203.0.113.7/32 on lan0 to 10.0.0.3:443 by lan0 is asked for at the same address and port"},
		{"UDP", pre + "iifname wan0 udp dport 53 dnat ip to 10.0.0.2\n}}", ""},
	} {
		run(t, "ip route replace 198.51.100.5/32 dev lan0")
		feed(t, c.rules)
		h, _ := fixture(t, nil)
		found, err := h.Forwarded()
		h.Close()
		if err != nil || len(found.Services) == 0 {
			t.Fatalf("%s: %v, %v", c.name, found.Services, err)
		}
		if got := found.Unproxied[found.Services[len(found.Services)-1]]; got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

// The same as iptables-nft writes it, as docker does.
func TestForwardedByIptables(t *testing.T) {
	enterGateway(t, "iptables-nft", "nft")
	const name = "tcp/8080 at 203.0.113.7/32 to 10.0.0.2:80 by wan0"
	for _, c := range []struct{ rules, want string }{
		{"-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER + -A DOCKER -i lan0 -j RETURN + " +
			"-A DOCKER ! -i lan0 -p tcp -m tcp --dport 8080 -j DNAT --to-destination 10.0.0.2:80 + " +
			"-A POSTROUTING -s 10.0.0.0/24 ! -o lan0 -j MASQUERADE + " +
			"-A POSTROUTING -s 10.0.0.2/32 -d 10.0.0.2/32 -p tcp -m tcp --dport 80 -j MASQUERADE", name},
		{"-A PREROUTING -i wan0 -p udp --dport 53 -j DNAT --to-destination 10.0.0.2",
			"udp/53 at 203.0.113.7/32 on wan0 to 10.0.0.2:53 by wan0"},
		{"-A PREROUTING -i wan0 -p tcp -m multiport --dports 80,443 -j DNAT --to-destination 10.0.0.2",
			"tcp/443 at 203.0.113.7/32 on wan0 to 10.0.0.2:443 by wan0\n" +
				"tcp/80 at 203.0.113.7/32 on wan0 to 10.0.0.2:80 by wan0"},
		{"-A PREROUTING -i wan0 -p udp -m multiport --dports 53,10000:20000 -j DNAT --to-destination 10.0.0.2",
			"udp/10000-20000 at 203.0.113.7/32 on wan0 to 10.0.0.2:10000 by wan0\n" +
				"udp/53 at 203.0.113.7/32 on wan0 to 10.0.0.2:53 by wan0"},
		{"-A PREROUTING -i wan0 -p tcp -m multiport ! --dports 80,443 -j DNAT --to-destination 10.0.0.2", ""},
		{"-A PREROUTING -i wan0 -p tcp -m multiport --sports 80,443 -m tcp --dport 80 -j DNAT --to-destination 10.0.0.2",
			"tcp/80 at 203.0.113.7/32 on wan0 to 10.0.0.2:80 by wan0: " +
				"there is more to its rule than can be repeated: chain PREROUTING of table nat"},
		{"-A PREROUTING -i wan0 -p tcp --dport 80 -j DNAT --to-destination 10.0.0.2-10.0.0.3", ""},
		{"-A PREROUTING -i wan0 -p tcp --dport 80 -j DNAT --to-destination 10.0.0.2:80 --random", ""},
		{"-A PREROUTING -i wan0 -p tcp --dport 80 -m statistic --mode random --probability 0.5 " +
			"-j DNAT --to-destination 10.0.0.2:80", "tcp/80 at 203.0.113.7/32 on wan0 to 10.0.0.2:80 by wan0: " +
			"there is more to its rule than can be repeated: chain PREROUTING of table nat"},
	} {
		feed(t, "")
		run(t, "iptables-nft -t nat -N DOCKER")
		for one := range strings.SplitSeq(c.rules, " + ") {
			run(t, fmt.Sprint("iptables-nft -t nat ", one))
		}
		if diff := cmp.Diff(c.want, forwardedBy(t)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.rules, diff)
		}
	}
}

// Chains that are come to by more ways than can be followed are given up, soon, and nothing that comes after
// is repeated.
func TestManyWaysAreGivenUp(t *testing.T) {
	r := &ruleset{exact: make(map[chainKey][]exactRule)}
	at := func(level int) chainKey { return chainKey{name: fmt.Sprint("c", level)} }
	for level := range 14 {
		for range 4 {
			r.exact[at(level)] = append(r.exact[at(level)], exactRule{flowMatch: flowMatch{exact: true}, verdict: jumped,
				chain: at(level + 1).name})
		}
	}
	list := r.flatten(at(0), flowMatch{exact: true}, 0, nil)
	if r.looks > 2*mostLooks || len(list) == 0 || list[0].verdict != scattered {
		t.Errorf("%d looks, %d steps", r.looks, len(list))
	}
}
