package survey

import (
	"fmt"
	"strings"
	"testing"
)

// insideOf lists what is inside of the host that a test made.
func insideOf(t *testing.T) string {
	t.Helper()
	h := New("/")
	h.read.rest = 0
	defer h.Close()
	list, err := h.Inside()
	if err != nil {
		t.Fatal(err)
	}
	return strings.Trim(fmt.Sprint(list), "[]")
}

// What is inside is told from the rules that translate sources, from routes and addresses.
func TestInside(t *testing.T) {
	enterGateway(t, "nft")
	run(t, "ip link add br0 type bridge", "ip address add 172.18.0.1/16 dev br0", "ip link set br0 up",
		"ip route add 198.51.100.0/24 via 203.0.113.9", "ip route add 10.7.0.0/16 via 10.0.0.9",
		"ip link add wan2 type veth peer name wan3", "ip address add 192.0.2.7/24 dev wan2", "ip link set wan2 up")
	const (
		post    = "table inet home {\n chain post {\n type nat hook postrouting priority srcnat\n"
		lan     = "10.0.0.0/24 10.7.0.0/16"
		bridge  = "172.18.0.0/16"
		six     = "fd00::/64"
		another = "192.0.2.0/24"
	)
	all := strings.Join([]string{lan, bridge, another, six}, " ")
	for _, c := range []struct{ name, rules, want string }{
		{"no rule", "", ""},
		{"another chain", "table inet home {\n chain pre {\n type nat hook prerouting priority dstnat\n" +
			"iifname wan0 tcp dport 80 dnat ip to 10.0.0.2\n}}", ""},
		{"what containers' programs write", post + "ip saddr 172.18.0.0/16 oifname != br0 masquerade\n}}", bridge},
		{"the LAN by name", post + "ip saddr 10.0.0.0/24 oifname wan0 masquerade\n}}", "10.0.0.0/24 " + six},
		{"to an address", post + "oifname { wan0, wan2 } snat ip to 203.0.113.7\n}}",
			strings.Join([]string{lan, bridge, six}, " ")},
		{"an uplink", post + "oifname wan0 masquerade\n}}", all},
		{"whatever", post + "masquerade\n}}", all},
		{"a chain of its own", "table inet home {\n chain out {\n masquerade\n}\n}\n" + post +
			"ip saddr 172.18.0.0/16 jump out\n}}", bridge},
		{"marked packets", post + "meta mark & 0x4000 == 0 return\nmasquerade\n}}", all},
		{"not this host's own", post + "fib saddr type local masquerade\n}}", ""},
		{"a network outside", post + "ip saddr 203.0.113.0/24 oifname wan0 masquerade\n}}", ""},
	} {
		feed(t, c.rules)
		set(t, "ipv4/ip_forward", "1")
		set(t, "ipv6/conf/all/forwarding", "1")
		if got := insideOf(t); got != c.want {
			t.Errorf("%s: inside is %q, want %q", c.name, got, c.want)
		}
		set(t, "ipv4/ip_forward", "0")
		set(t, "ipv6/conf/all/forwarding", "0")
		if got := insideOf(t); got != "" {
			t.Errorf("%s: inside is %q though nothing is forwarded", c.name, got)
		}
	}
}

// The same as iptables-nft writes it, for containers, and with legacy tables, which can't be read.
func TestInsideOfIptables(t *testing.T) {
	enterGateway(t, "iptables-nft", "iptables-legacy")
	run(t, "ip link add br0 type bridge", "ip address add 172.18.0.1/16 dev br0", "ip link set br0 up",
		"iptables-nft -t nat -A POSTROUTING -s 172.18.0.0/16 ! -o br0 -j MASQUERADE")
	set(t, "ipv4/ip_forward", "1")
	if got, want := insideOf(t), "172.18.0.0/16"; got != want {
		t.Errorf("inside is %q, want %q", got, want)
	}
	run(t, "iptables-nft -t nat -A POSTROUTING -o wan0 -j SNAT --to-source 203.0.113.7")
	if got, want := insideOf(t), "10.0.0.0/24 172.18.0.0/16"; got != want {
		t.Errorf("inside is %q, want %q", got, want)
	}
	run(t, "iptables-nft -t nat -F", "iptables-legacy -t nat -A POSTROUTING -o wan0 -j MASQUERADE")
	if got, want := insideOf(t), "10.0.0.0/24 172.18.0.0/16"; got != want {
		t.Errorf("with legacy tables, inside is %q, want %q", got, want)
	}
}
