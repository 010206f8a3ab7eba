package nft

import (
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"ctguard/policy"
)

// A connection whose entry is gone repeats itself in vain while TCP is held to what conntrack knows: it is remembered
// as long as that lasts. A packet that belongs to nothing comes once, and is not.
func TestStrays(t *testing.T) {
	l := newLink(t)
	l.serve(80)
	table := open(t)
	apply(t, table, Desired{Posture: policy.Posture{DropInvalid: true}})
	open2, open6, other := l.mustDial("tcp", client2, 80), l.mustDial("tcp", client6, 80), l.mustDial("tcp", client3, 80)
	if err := os.WriteFile("/proc/sys/net/netfilter/nf_conntrack_tcp_loose", []byte("0"), 0); err != nil {
		t.Fatal(err)
	}
	run(t, "conntrack -D -p tcp --src "+client2)
	run(t, "conntrack -D -f ipv6 -p tcp --src "+client6)
	_, _ = open2.Write([]byte("x"))
	_, _ = open6.Write([]byte("x"))
	mustEcho(t, other)
	want := []policy.Stray{
		{Source: netip.MustParseAddr(client2), Destination: netip.MustParseAddr(hostV4)},
		{Source: netip.MustParseAddr(client6), Destination: netip.MustParseAddr(hostV6)},
	}
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		got := work(t, table).Strays
		if slices.Equal(got, want) {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("strays %v, not %v", got, want)
		}
	}
}
