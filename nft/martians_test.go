package nft

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
)

// What comes by a link with a source that can't be there, seen before anything of the host drops it: by the client all
// but the gateway's outer address, by the inside host its own and the gateway's outer one, by the gateway, as the
// packet is when it is routed, its own addresses and what it would send elsewhere. All of these are martians.
var (
	fromOutside = fmt.Sprintf(`table inet martians { counter seen { }; chain in {
		type filter hook prerouting priority -450
		iifname "eth0" ip saddr != %s counter name seen
		iifname "eth0" ip6 saddr != { %s, fe80::/10, :: } counter name seen; }; }`, public4, public6)
	fromInside = fmt.Sprintf(`table inet martians { counter seen { }; chain in {
		type filter hook prerouting priority -450
		iifname "eth0" ip saddr { %s, %s, 127.0.0.0/8 } counter name seen
		iifname "eth0" ip6 saddr { %s, %s, ::1 } counter name seen; }; }`, public4, inside4, public6, inside6)
	between = `table inet martians { counter seen { }; chain last {
		type filter hook prerouting priority 400
		iifname { "wan0", "lan0" } fib saddr type local counter name seen
		iifname { "wan0", "lan0" } ip6 saddr != { fe80::/10, :: } fib saddr . iif oif missing counter name seen
		iifname { "wan0", "lan0" } ip saddr != 0.0.0.0 fib saddr . iif oif missing counter name seen; }; }`
)

// martians counts from now on. What it returns tells where how many were seen, by packets and by the kernel's reverse
// path filter.
func (g *gateway) martians() func() []string {
	g.t.Helper()
	places := []struct {
		name, rules string
		do          func(func())
	}{
		{"the client", fromOutside, func(f func()) { g.in(g.client, f) }},
		{"the gateway", between, func(f func()) { f() }},
		{"the inside host", fromInside, func(f func()) { g.in(g.server, f) }},
	}
	for _, p := range places {
		p.do(func() {
			run(g.t, "sysctl -qw net.ipv4.conf.all.rp_filter=1 net.ipv4.conf.all.log_martians=1")
			feed(g.t, p.rules)
		})
	}
	return func() (found []string) {
		for _, p := range places {
			p.do(func() {
				var n int
				_, text, _ := strings.Cut(run(g.t, "nft list counter inet martians seen"), "packets ")
				fmt.Sscan(text, &n)
				if n += reversePathFiltered(g.t); n > 0 {
					found = append(found, fmt.Sprintf("%d at %s", n, p.name))
				}
			})
		}
		return found
	}
}

// reversePathFiltered is IPReversePathFilter of the calling thread's namespace.
func reversePathFiltered(t *testing.T) (n int) {
	b, err := os.ReadFile("/proc/thread-self/net/netstat")
	if err != nil {
		t.Error(err)
		return 0
	}
	lines := strings.Split(string(b), "\n")
	names, values := strings.Fields(lines[0]), strings.Fields(lines[1])
	for i, name := range names {
		if name == "IPReversePathFilter" {
			fmt.Sscan(values[i], &n)
			return n
		}
	}
	t.Error("no IPReversePathFilter in netstat")
	return 0
}

// TestMartiansAreSeen: a gateway that translates the source of answers before they are routed, or not at all, is found
// out.
func TestMartiansAreSeen(t *testing.T) {
	for _, c := range []struct{ name, mistake, at string }{
		{"not translated", `table ip mistake { chain pre { type filter hook prerouting priority raw
			udp dport 53 ip daddr 203.0.113.1 notrack udp dport set 5353 ip daddr set 10.0.0.2
			udp sport 5353 notrack; }; }`, "the client"},
		{"too early", `table ip mistake { chain pre { type filter hook prerouting priority raw
			udp dport 53 ip daddr 203.0.113.1 notrack udp dport set 5353 ip daddr set 10.0.0.2
			udp sport 5353 notrack udp sport set 53 ip saddr set 203.0.113.1; }; }`, "the gateway"},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := newGateway(t, fmt.Sprintf(hostRules, ""))
			g.insideOut = true
			feed(t, c.mistake)
			if _, err := g.mustDial("udp4").Write([]byte("question")); err != nil {
				t.Fatal(err)
			}
			until := time.Now().Add(patience)
			for !strings.Contains(fmt.Sprint(g.seen()), c.at) {
				if time.Now().After(until) {
					t.Fatalf("seen: %q", g.seen())
				}
			}
		})
	}
}
