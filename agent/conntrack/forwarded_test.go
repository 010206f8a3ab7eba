package conntrack

import (
	"net/netip"
	"os/exec"
	"strings"
	"testing"

	"ctguard/policy"
)

// Of a forwarded service that is untracked only what came to nothing so far is freed, and only where it leads to the
// inside host that is meant. What lives gets its entries back, translated, and keeps those that it has.
func TestFreeForwarded(t *testing.T) {
	table := openTable(t)
	const service = "tcp/443 at 203.0.113.1/32 on wan0 to 10.0.0.2:8443 by wan0"
	s, err := policy.ParseSelector(service)
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{
		"--sport 1 --dport 443 --state SYN_SENT --dst-nat 10.0.0.2:8443",
		"--sport 2 --dport 443 --state SYN_RECV --status SEEN_REPLY --dst-nat 10.0.0.2:8443",
		"--sport 3 --dport 443 --state ESTABLISHED --status SEEN_REPLY,ASSURED --dst-nat 10.0.0.2:8443",
		"--sport 4 --dport 443 --state SYN_SENT --dst-nat 10.0.0.3:8443",
		"--sport 5 --dport 444 --state SYN_SENT --dst-nat 10.0.0.2:8443",
		"--sport 6 --dport 443 --state SYN_SENT",
	} {
		args := strings.Fields("-I -p tcp -s 192.0.2.9 -d 203.0.113.1 --timeout 60 " + line)
		if out, err := exec.Command("conntrack", args...).CombinedOutput(); err != nil {
			t.Fatalf("conntrack %s: %v\n%s", line, err, out)
		}
	}
	n, err := table.Evict(t.Context(), Eviction{Selectors: []policy.Selector{s},
		Local: func(addr netip.Addr) bool { return addr == netip.MustParseAddr("203.0.113.1") }})
	if err != nil || n != 2 {
		t.Errorf("%d freed (%v), want 2", n, err)
	}
	for _, e := range dump(t, table) {
		if e.orig.srcPort < 3 {
			t.Errorf("the entry of port %d stayed", e.orig.srcPort)
		}
	}
	var flows []ForwardedFlow
	for _, client := range []string{"192.0.2.9:3", "192.0.2.9:7"} {
		flows = append(flows, ForwardedFlow{Client: netip.MustParseAddrPort(client),
			Outside: netip.MustParseAddrPort("203.0.113.1:443"), Inside: s.Inside})
	}
	if n, err := table.AdoptForwarded(t.Context(), flows, nil); n != 2 || err != nil {
		t.Errorf("%d adopted (%v), want 2", n, err)
	}
	out, err := exec.Command("conntrack", "-L", "-p", "tcp", "--reply-src", "10.0.0.2", "--state", "ESTABLISHED").Output()
	if err != nil || strings.Count(string(out), "sport=8443") != 2 || strings.Count(string(out), "[ASSURED]") != 2 {
		t.Errorf("entries (%v):\n%s", err, out)
	}
}
