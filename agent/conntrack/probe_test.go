package conntrack

import (
	"maps"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"ctguard/policy"
)

func TestProbe(t *testing.T) {
	table := openTable(t)
	fill(t, tcp("192.0.2.1", 5, tcpSynSent, 0, 60)...)
	before, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	first, err := Probe()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("this kernel: %+v, missing %q", first, first.Missing())
	if again, err := Probe(); err != nil || again != first || probing.wait == nil {
		t.Errorf("asked again: %+v, %v", again, err)
	}
	if n, err := table.Count(); err != nil || n != 5 {
		t.Errorf("the probe touched a table in use: %d entries, %v", n, err)
	}
	if after, err := os.Readlink("/proc/self/ns/net"); err != nil || after != before {
		t.Errorf("the process moved from %s to %s, %v", before, after, err)
	}
	if n := len((Capabilities{}).Missing()); n != 2 {
		t.Errorf("%d capabilities named as missing, want both", n)
	}
}

// All of a source goes, and nobody else's: whatever the zone, whatever the kernel filters by itself. Nothing is found
// out for that first, which takes as long as to read a full table.
func TestRemoveSource(t *testing.T) {
	table := openTable(t)
	known := probing.wait
	probing.wait = nil
	t.Cleanup(func() {
		if probing.wait != nil {
			t.Error("it was probed what this kernel can do")
		}
		probing.wait = known
	})
	first := tcp("192.0.2.1", 20, tcpEstablished, busy, 60)
	first[7].Zone = 7 // whatever zone an entry is in
	first[8].NewDst = addr("10.0.0.1")
	first[8].ReplySrc = first[8].NewDst
	fill(t, first...)
	fill(t, tcp("192.0.2.2", 30, tcpEstablished, busy, 60)...)
	fill(t, tcp("198.51.100.7", 40, tcpEstablished, busy, 60)...)
	for i := range 30 {
		fill(t, flow{Src: nth(addr("2001:db8::1"), i/10), Dst: addr("2001:db8:1::1"), Proto: unix.IPPROTO_UDP,
			SrcPort: uint16(i), DstPort: 53, Timeout: 30})
	}
	steps := []struct {
		prefix, spare string
		want, left    int
	}{
		{"192.0.2.1/32", "", 20, 100},
		{"192.0.2.1/32", "", 0, 100},
		{"192.0.2.2/32", "192.0.2.0/24", 0, 100},
		{"192.0.2.0/24", "198.51.100.0/24", 30, 70},
		{"2001:db8::1/128", "", 10, 60},
		{"2001:db8::/32", "", 20, 40},
		{"0.0.0.0/0", "", 40, 0},
	}
	for _, s := range steps {
		var spare = parsePrefixes(s.spare)
		n, err := table.Remove(t.Context(), EntryFilter{Source: prefix(s.prefix)}, spare, false, nil)
		if left, _ := table.Count(); err != nil || n != s.want || left != s.left {
			t.Errorf("%s: deleted %d, %d left, %v; want %d, %d", s.prefix, n, left, err, s.want, s.left)
		}
	}
}

func TestEvictFewSources(t *testing.T) {
	here, err := Probe()
	if err != nil {
		t.Log(err)
	}
	for _, force := range []Capabilities{{}, here} {
		table := openTable(t)
		table.force = &force
		fill(t, tcp("192.0.2.1", 20, tcpEstablished, busy, 60)...)
		fill(t, tcp("192.0.2.2", 20, tcpEstablished, busy, 60)...)
		fill(t, tcp("192.0.2.3", 20, tcpEstablished, busy, 60)...)
		got, err := table.Evict(t.Context(), Eviction{Caps: []policy.Cap{{Prefix: prefix("192.0.2.1/32"), Keep: 5},
			{Prefix: prefix("192.0.2.3/32"), Keep: 7}}})
		if err != nil || got != 28 {
			t.Errorf("%+v: deleted %d, %v; want 28", force, got, err)
		}
		left := make(map[string]int)
		for _, e := range dump(t, table) {
			left[e.orig.src.netip().String()]++
		}
		if want := map[string]int{"192.0.2.1": 5, "192.0.2.2": 20, "192.0.2.3": 7}; !maps.Equal(left, want) {
			t.Errorf("%+v: left %v, want %v", force, left, want)
		}
	}
}
