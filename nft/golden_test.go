package nft

import (
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"ctguard/policy"
)

var update = flag.Bool("update", false, "write the golden files instead of comparing with them")

// now is the time at which tests apply, unless it is time they test.
var now = time.Now()

func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

func tracked(stage policy.Stage, selectors ...string) []policy.Untracked {
	var list []policy.Untracked
	for _, text := range selectors {
		s, err := policy.ParseSelector(text)
		if err != nil {
			panic(err)
		}
		list = append(list, policy.Untracked{Selector: s, Stage: stage})
	}
	return list
}

// listeners are TCP services of this host.
func listeners(ports ...uint16) []policy.Selector {
	list := make([]policy.Selector, len(ports))
	for i, port := range ports {
		list[i] = policy.Selector{Protocol: policy.TCP, Port: port}
	}
	return list
}

// cases are representative states and the golden files of what nft lists for them. States that share
// a file must make no difference.
func cases() []struct {
	name, golden string
	desired      Desired
} {
	allowList := []netip.Prefix{prefix("192.0.2.0/24"), prefix("192.0.2.7/32"), prefix("2001:db8:1::/48")}
	minute := now.Add(time.Minute)
	limits := []policy.Limit{
		{Prefix: prefix("198.51.100.7/32"), Kind: policy.Block, Until: minute},
		{Prefix: prefix("203.0.113.0/24"), Until: minute},
		{Prefix: prefix("198.51.100.9/32"), Until: minute.Add(90 * time.Second)},
		{Prefix: prefix("2001:db8:2::/64"), Until: minute},
		{Prefix: prefix("2001:db8:3::1/128"), Kind: policy.Block},
	}
	messy := append([]policy.Limit{
		{Prefix: prefix("203.0.113.77/32"), Until: minute},                             // covered
		{Prefix: prefix("::ffff:198.51.100.7/128"), Kind: policy.Block, Until: minute}, // the same, mapped
		{Prefix: prefix("203.0.113.9/24"), Until: now.Add(time.Second)},                // the same, unmasked, shorter
		{Prefix: prefix("203.0.113.10/32"), Kind: policy.Block, Until: now},            // ended
	}, limits...)
	posture := policy.Posture{Limits: limits, LimitRate: 10, LimitBurst: 20}
	services := tracked(policy.Trial, "tcp/80", "udp/53", "echo", "multicast",
		"tcp/22 with 198.51.100.0/25", "tcp/22 with 2001:db8:4::/64", "echo with 203.0.113.7/32")
	watched := tracked(policy.Watched, "tcp/443", "udp/123")
	handshake := policy.Handshake{MSS4: 1460, MSS6: 1440, WindowScale: 7, SACK: true, Timestamps: true}
	budgets := []policy.Budget{
		{Class: policy.FlowClass{Protocol: 6, Port: 80}, Rate: 27},
		{Class: policy.FlowClass{Protocol: 17, Port: 53}, Rate: 109},
		{Class: policy.FlowClass{Protocol: 253}, Rate: 6},
	}
	type c = struct {
		name, golden string
		desired      Desired
	}
	return []c{
		{"invalid", "invalid", Desired{Posture: policy.Posture{Level: 1, DropInvalid: true}, Allow: allowList}},
		{"invalid, rate without limits", "invalid", Desired{
			Posture: policy.Posture{DropInvalid: true, LimitRate: 5, Reject: true,
				Settings: map[string]int{"nf_conntrack_tcp_loose": 0},
				Caps:     []policy.Cap{{Prefix: prefix("198.51.100.7/32"), Keep: 1}}},
			Allow: allowList}},
		{"limits", "limits", Desired{Posture: posture, Allow: allowList}},
		{"limits, messy", "limits", Desired{
			Posture: policy.Posture{Limits: messy, LimitRate: 10, LimitBurst: 20},
			Allow:   allowList}},
		{"limits, reject", "reject", Desired{
			Posture: policy.Posture{Limits: limits, LimitRate: 10, LimitBurst: 20, Reject: true},
			Allow:   allowList}},
		{"limits of classes", "greedy", Desired{
			Posture: policy.Posture{Limits: append([]policy.Limit{
				{Prefix: prefix("10.0.0.7/32"), Until: minute,
					Flows: []policy.FlowClass{{Protocol: 1}, {Protocol: 6, Port: 22}, {Protocol: 17, Port: 53}},
					Peers: []netip.Addr{netip.MustParseAddr("192.0.2.80"), netip.MustParseAddr("192.0.2.81")}},
				{Prefix: prefix("2001:db8:4::7/128"), Until: minute,
					Flows: []policy.FlowClass{{Protocol: 6, Port: 443}, {Protocol: 58}},
					Peers: []netip.Addr{netip.MustParseAddr("2001:db8:5::80")}},
			}, limits...), LimitRate: 10, LimitBurst: 20}, Allow: allowList}},
		{"limits of all but TCP", "buttcp", Desired{
			Posture: policy.Posture{Limits: append([]policy.Limit{
				{Prefix: prefix("192.0.2.66/32"), ButTCP: true, Until: minute},
				{Prefix: prefix("192.0.3.0/24"), ButTCP: true, Until: minute},
				{Prefix: prefix("2001:db8:6::/64"), ButTCP: true, Until: minute},
			}, limits...), LimitRate: 10, LimitBurst: 20}, Allow: allowList}},
		{"limits in zones", "zones", Desired{
			Posture: policy.Posture{Limits: []policy.Limit{
				{Prefix: prefix("198.51.100.9/32"), Until: minute}, // by an operator: in any
				{Prefix: prefix("198.51.100.7/32"), Zoned: true, Until: minute},
				{Prefix: prefix("198.51.100.7/32"), Zone: 5, Zoned: true, Until: minute.Add(time.Minute)},
				{Prefix: prefix("2001:db8:2::/64"), Zone: 5, Zoned: true, Until: minute},
				{Prefix: prefix("198.51.100.8/32"), Zone: 5, Zoned: true, ButTCP: true, Until: minute},
				{Prefix: prefix("10.0.0.7/32"), Zone: 65535, Zoned: true, Until: minute,
					Flows: []policy.FlowClass{{Protocol: 1}, {Protocol: 6, Port: 22}},
					Peers: []netip.Addr{netip.MustParseAddr("192.0.2.80")}},
			}, LimitRate: 10, LimitBurst: 20}, Allow: allowList}},
		{"no new flows", "norate", Desired{Posture: policy.Posture{Limits: limits[1:2]}}},
		{"watched", "watched", Desired{Posture: policy.Posture{Notrack: watched}}},
		{"notrack on trial", "trial", Desired{Posture: policy.Posture{Notrack: append(watched, services...)}}},
		{"notrack freed", "notrack", Desired{
			Posture: policy.Posture{Notrack: append(watched,
				tracked(policy.Freed, "multicast", "tcp/80", "udp/53", "tcp/22 with 198.51.100.0/25",
					"tcp/22 with 2001:db8:4::/64", "echo", "echo with 203.0.113.7/32")...)}}},
		{"watched, between looks", "idle", Desired{Posture: policy.Posture{Notrack: watched, Uncounted: true}}},
		{"notrack, between looks", "quiet", Desired{
			Posture: policy.Posture{Uncounted: true, DropInvalid: true, ClosedPorts: true, Notrack: slices.Concat(watched,
				tracked(policy.Trial, "tcp/22", "udp/500"),
				tracked(policy.Leaving, "tcp/25"),
				tracked(policy.Freed, "multicast", "tcp/80", "udp/53", "tcp/22 with 198.51.100.0/25", "echo"))},
			Allow: allowList}},
		{"services, between looks", "services", Desired{
			Posture: policy.Posture{Uncounted: true, Notrack: slices.Concat(
				tracked(policy.Trial, "tcp/22"), tracked(policy.Freed, "tcp/80", "udp/53", "echo"))}}},
		{"an allowed source in a blocked network", "exempt", Desired{
			Posture: policy.Posture{Limits: []policy.Limit{{Prefix: prefix("192.0.2.0/23"), Kind: policy.Block}}},
			Allow:   allowList}},
		{"forwarded, between looks", "quietforwarded", Desired{
			Posture: policy.Posture{Uncounted: true, Notrack: slices.Concat(
				tracked(policy.Freed, forwards[0], "tcp/80"), tracked(policy.Watched, forwards[1]))}}},
		{"notrack, all forms", "forms", Desired{
			Posture: policy.Posture{DropInvalid: true, Notrack: append(
				tracked(policy.Freed, "tcp/80 at 203.0.113.0/28",
					"tcp/80 with 198.51.100.0/24 at 203.0.113.1/32 on eth0.100", "udp/10000-20000", "echo on br-1",
					"echo with ::/0 at 2001:db8::/64", "udp"),
				tracked(policy.Trial, "tcp", "tcp/8000-8999 at 0.0.0.0/0", "udp with 0.0.0.0/0 at 0.0.0.0/0",
					"tcp with 2001:db8::1/128 on wan_0")...)},
			Allow: allowList}},
		{"notrack of everything", "pure", Desired{
			Posture: policy.Posture{DropInvalid: true, Notrack: tracked(policy.Trial, "all", "tcp/80")},
			Allow:   allowList}},
		{"forwarded", "forwarded", Desired{
			Posture: policy.Posture{Notrack: append(
				tracked(policy.Trial, forwards[0],
					"udp/10000-20000 with 198.51.100.0/24 at 203.0.113.1/32 to 10.0.0.2:10000 by wan0"),
				tracked(policy.Watched, forwards[1])...)}}},
		{"closed ports", "closed", Desired{Posture: policy.Posture{ClosedPorts: true, ClosedRate: 100}, Allow: allowList}},
		{"budgets", "budgets", Desired{Posture: policy.Posture{Budgets: budgets}, Allow: allowList}},
		{"reserve", "reserve", Desired{Posture: policy.Posture{Reserve: policy.Reserve{Engaged: true, Rate: 4096}},
			Allow: allowList}},
		{"reserve, nothing left", "reserved", Desired{Posture: policy.Posture{Reserve: policy.Reserve{Engaged: true}},
			Allow: allowList}},
		{"synproxy", "synproxy", Desired{
			Posture: policy.Posture{Synproxy: listeners(80, 443), Handshake: handshake},
			Allow:   allowList}},
		{"synproxy, bare", "bare", Desired{
			Posture: policy.Posture{Synproxy: listeners(80), Handshake: policy.Handshake{MSS4: 536, MSS6: 1220}}}},
		{"synproxy, last cookies", "cookies", Desired{
			Posture: policy.Posture{Synproxy: listeners(80), Handshake: handshake, LastCookies: true}}},
		{"synproxy, forwarded", "proxyinside", Desired{
			Posture: policy.Posture{Synproxy: append(listeners(22), cookieServices...), InsideMSS: cookieMSS,
				Learn: append([]policy.Selector{selector(forwards[2])}, cookieServices...), Handshake: handshake,
				DropInvalid: true},
			Allow: allowList}},
		{"synproxy, forwarded, last cookies", "cookiesinside", Desired{
			Posture: policy.Posture{Synproxy: cookieServices, InsideMSS: cookieMSS, LastCookies: true}}},
		{"all", "all", Desired{
			Posture: policy.Posture{DropInvalid: true, Notrack: append(watched, services...),
				Limits: limits, LimitRate: 10, LimitBurst: 20,
				ClosedPorts: true, Budgets: budgets, Synproxy: listeners(8080), Handshake: handshake,
				Reserve: policy.Reserve{Engaged: true, Rate: 1}},
			Allow: allowList}},
		{"everything allowed", "whole", Desired{
			Posture: policy.Posture{DropInvalid: true,
				Limits: []policy.Limit{{Prefix: prefix("0.0.0.0/0")}, {Prefix: prefix("::/0"), Kind: policy.Block},
					{Prefix: prefix("255.255.255.255/32"), Kind: policy.Block}},
				LimitRate: 5, LimitBurst: 5,
				Notrack: tracked(policy.Trial, "tcp/22 with 0.0.0.0/0", "udp/53 with ::/0")},
			Allow: []netip.Prefix{prefix("0.0.0.0/0"), prefix("ffff::/16")}}},
	}
}

// volatile is what differs between two listings of the same state.
var volatile = []struct {
	what *regexp.Regexp
	with string
}{
	{regexp.MustCompile(` # progname \S+`), ""},
	{regexp.MustCompile(` expires [0-9dhms]+`), ""},
	{regexp.MustCompile(`packets \d+ bytes \d+`), "packets 0 bytes 0"},
	{regexp.MustCompile(`(?m)^\tflags owner\n\n?`), ""},
	// What is of no named type is listed in the way in which it was declared: as a library does it, or as nft.
	{regexp.MustCompile(`type ipv4_addr \. inet_service \. integer`), "typeof " + saidBy[0].key()},
	{regexp.MustCompile(`type ipv6_addr \. inet_service \. integer`), "typeof " + saidBy[1].key()},
}

// list returns nft's listing of the table without what is volatile.
func list(t testing.TB) string {
	t.Helper()
	text := run(t, "nft list table inet ctguard")
	for _, v := range volatile {
		text = v.what.ReplaceAllString(text, v.with)
	}
	return text
}

func open(t testing.TB, opts ...Option) *Table {
	t.Helper()
	table, err := Open(opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { table.Close() })
	return table
}

func apply(t testing.TB, table *Table, d Desired) {
	t.Helper()
	if err := table.Apply(d, now); err != nil {
		t.Fatalf("apply: %v", err)
	}
}

func TestGolden(t *testing.T) {
	for _, c := range cases() {
		t.Run(c.name, func(t *testing.T) {
			inNewNetNS(t)
			table := open(t)
			apply(t, table, c.desired)
			got := list(t)
			file := filepath.Join("testdata", c.golden+".golden")
			if *update {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			golden, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			want := string(golden)
			if want != got { // perhaps this nft only spells it otherwise
				table.Close()
				feed(t, want)
				want = list(t)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("nft lists (-golden +got):\n%s", diff)
			}
		})
	}
}

// TestRenderIsApply proves that what a plan shows is what is applied: nft reads it and then lists
// the same.
func TestRenderIsApply(t *testing.T) {
	for _, c := range cases() {
		t.Run(c.name, func(t *testing.T) {
			inNewNetNS(t)
			table := open(t)
			apply(t, table, c.desired)
			applied := list(t)
			if err := table.Close(); err != nil {
				t.Fatal(err)
			}
			text := Render(c.desired, now)
			feed(t, strings.Replace(text, "\tflags owner\n", "", 1))
			if diff := cmp.Diff(applied, list(t)); diff != "" {
				t.Errorf("nft lists (-applied +rendered):\n%s\n%s", diff, text)
			}
		})
	}
}

// TestCommentIsRule proves that each rule's comment is the line that nft prints for it.
func TestCommentIsRule(t *testing.T) {
	line := regexp.MustCompile(`(?m)^\t\t(.*) comment "(.*)"$`)
	for _, c := range cases() {
		t.Run(c.name, func(t *testing.T) {
			inNewNetNS(t)
			apply(t, open(t), c.desired)
			listing := list(t)
			found := line.FindAllStringSubmatch(listing, -1)
			if len(found) == 0 && c.golden != "idle" {
				t.Fatalf("no rule has a comment:\n%s", listing)
			}
			for _, f := range found {
				// Versions of nft differ in how they spell a mask and whether they print the default burst.
				r := rule{text: strings.NewReplacer(
					"limit rate 5/second }", "limit rate 5/second burst 5 packets }",
					"tcp flags & (fin | syn | rst | ack) == syn", "tcp flags syn / fin,syn,rst,ack",
				).Replace(f[1])}
				if got := r.comment(); got != f[2] {
					t.Errorf("nft lists %q, the comment says %q", got, f[2])
				}
			}
		})
	}
}
