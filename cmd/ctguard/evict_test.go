package main

import (
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"ctguard/agent/conntrack"
	"ctguard/agent/conntrack/conntrackfill"
	"ctguard/agent/conntrack/conntracktest"
)

// TestLittle: who has more than a tenth of the table is counted and asked about, who has less is not counted.
func TestLittle(t *testing.T) {
	conntracktest.Own(t)
	const all, large, small = 30000, 4500, 600
	owner := func(i int) string {
		switch {
		case i < large:
			return "198.51.100.7"
		case i < large+small:
			return "2001:db8::7"
		}
		return netip.AddrFrom4([4]byte{192, 0, byte(i >> 8), byte(i)}).String()
	}
	made, err := conntrackfill.Fill(func(yield func(conntrackfill.Flow) bool) {
		for i := range all {
			src := netip.MustParseAddr(owner(i))
			dst := netip.MustParseAddr("203.0.113.1")
			if src.Is6() {
				dst = netip.MustParseAddr("2001:db8:1::1")
			}
			if !yield(conntrackfill.Flow{Src: src, Dst: dst, Proto: unix.IPPROTO_UDP, SrcPort: uint16(i), DstPort: 53,
				Timeout: 60}) {
				return
			}
		}
	})
	if err != nil || made != all {
		t.Fatalf("made %d entries of %d: %v", made, all, err)
	}
	table, err := conntrack.Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { table.Close() })
	for source, want := range map[string]bool{
		"198.51.100.7/32": false, // it has more
		"2001:db8::7/128": true,
		"203.0.113.9/32":  true,  // it has none
		"192.0.0.0/16":    false, // a sample of its addresses would say little
	} {
		if got := little(t.Context(), table, netip.MustParsePrefix(source), all); got != want {
			t.Errorf("%s: %v, want %v", source, got, want)
		}
	}
	if little(t.Context(), table, netip.MustParsePrefix("2001:db8::7/128"), small*mostUnasked-1) {
		t.Error("a tenth of a table is little")
	}
}
