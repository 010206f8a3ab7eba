package survey

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"ctguard/policy"
)

// A filter that lets the packets of a service pass by their connection alone keeps it tracked, without a trial that
// costs everybody a second. One that lets them pass by something else, or not at all, doesn't.
func TestRefusedByState(t *testing.T) {
	enter(t, "nft", "iptables")
	const list = "tcp/80, udp/53, echo, multicast, tcp/80 with 192.0.2.0/24"
	const tcp, udp = "tcp/80, tcp/80 with 192.0.2.0/24", "udp/53"
	const in = chainIn + "policy drop\n iif lo accept\n"
	const out = tableHome + " chain out {\n type filter hook output priority filter\n"
	const answers = "ct state established,related accept\n"
	coming := func(at string) string {
		return "untracked packets for it are stopped, and those of connections not, in chain " + at
	}
	leaving := func(at string) string {
		return "its untracked answers are stopped, and those of connections not, in chain " + at
	}
	for _, c := range []struct{ name, rules, want, why string }{
		{"by its port", in + answers + "tcp dport 80 accept\n udp dport 53 accept\n}}", "", ""},
		{"by the original destination", in + "ct original ip daddr 198.51.100.1 tcp dport 80 accept\n" +
			" udp dport 53 accept\n}}", tcp, coming("in of table home")},
		{"by the direction", in + "ct direction original accept\n}}", tcp + ", " + udp, coming("in of table home")},
		{"by the status", in + "ct status assured accept\n udp dport 53 accept\n}}", tcp, coming("in of table home")},
		{"of some clients only", "table ip home {\n chain in {\n type filter hook input priority filter; policy drop\n" +
			"ip saddr 203.0.113.0/24 accept\n ct direction original accept\n}}", "tcp/80 with 192.0.2.0/24",
			coming("in of table home")},
		{"untracked ones named", chainPre + "tcp dport 80 ct state untracked drop\n}}", tcp, coming("pre of table home")},
		{"whatever is no connection", chainPre + "tcp dport 80 ct state != { new, established } drop\n}}", "", ""},
		{"by none of two states", chainIn + "udp dport 53 ct state ! new,established,related drop\n}}", udp,
			coming("in of table home")},
		{"untracked ones allowed", in + "ct state established,related,untracked accept\n}}", "", ""},
		{"nothing new allowed", in + answers + "}}", "", ""},
		{"answers by their state", out + "policy drop\n oif lo accept\n" + answers + " meta l4proto udp accept\n}}", tcp,
			leaving("out of table home")},
		{"answers of one family", "table ip6 home {\n chain out {\n type filter hook output priority filter; policy drop\n" +
			answers + "}}", "tcp/80, udp/53", leaving("out of table home")},
		{"answers by their port", out + "policy drop\n" + answers + "tcp sport 80 accept\n udp sport 53 accept\n}}", "", ""},
		{"answers of this host's addresses", out + "policy drop\n" + answers + "fib saddr type local accept\n}}", "", ""},
		{"answers refused on lo only", out + "oif lo ct state untracked drop\n}}", "", ""},
		{"behind lo", chainIn + "iif lo ct direction original accept\n iif lo drop\n}}", "", ""},
	} {
		feed(t, c.rules)
		h, _ := fixture(t, nil)
		if diff := cmp.Diff(each(c.want, c.why), refusals(t, h, list)); diff != "" {
			t.Errorf("%s: refused (-want +got):\n%s", c.name, diff)
		}
		h.Close()
	}
	run(t, "nft flush ruleset",
		"iptables -A INPUT -m conntrack ! --ctstate NEW,ESTABLISHED -p udp --dport 53 -j REJECT",
		"iptables -P OUTPUT DROP",
		"iptables -A OUTPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
		"iptables -A OUTPUT -p udp -j ACCEPT")
	h, _ := fixture(t, nil)
	defer h.Close()
	want := slices.Concat(each(tcp, leaving("OUTPUT of table filter")), each(udp, coming("INPUT of table filter")))
	if diff := cmp.Diff(want, refusals(t, h, list)); diff != "" {
		t.Errorf("iptables: refused (-want +got):\n%s", diff)
	}
}

// Each service is looked for in the rules once, for as long as they are the same.
func TestStoppedIsFoundOutOnce(t *testing.T) {
	m := &memory{reasons: make(map[policy.Selector]string)}
	looks := 0
	find := func(s policy.Selector) string { looks++; return s.String() }
	for range 3 {
		for port := range uint16(mostReasons) {
			s := policy.Selector{Protocol: policy.TCP, Port: port + 1}
			if got := m.of(s, find); got != s.String() {
				t.Fatalf("%s: %q", s, got)
			}
		}
	}
	if looks != mostReasons {
		t.Errorf("%d looks at %d services", looks, mostReasons)
	}
	if m.of(policy.Selector{Protocol: policy.UDP, Port: 1}, find); len(m.reasons) != 1 {
		t.Errorf("%d services are remembered", len(m.reasons))
	}
}
