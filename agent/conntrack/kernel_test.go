package conntrack

import (
	"net/netip"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"ctguard/agent/conntrack/conntrackfill"
	"ctguard/agent/conntrack/conntracktest"
)

type flow = conntrackfill.Flow

// openTable makes a network namespace for the calling test and opens its table.
func openTable(tb testing.TB) *Table {
	tb.Helper()
	conntracktest.Own(tb)
	table, err := Open()
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := table.Close(); err != nil {
			tb.Error(err)
		}
	})
	return table
}

// openTracking is openTable where what this host says to a peer is tracked.
func openTracking(tb testing.TB) (*Table, *conntracktest.Peer) {
	tb.Helper()
	table, peer := openTable(tb), newPeer(tb)
	if err := conntracktest.Run("nft add table inet track",
		"nft add chain inet track out {type filter hook output priority 0;}",
		"nft add rule inet track out ct state new accept"); err != nil {
		tb.Fatal(err)
	}
	return table, peer
}

// newPeer makes a peer for the test.
func newPeer(tb testing.TB) *conntracktest.Peer {
	tb.Helper()
	peer, err := conntracktest.NewPeer()
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(peer.Close)
	return peer
}

func fill(tb testing.TB, flows ...flow) {
	tb.Helper()
	if made, err := conntrackfill.Fill(slices.Values(flows)); err != nil || made != len(flows) {
		tb.Fatalf("made %d of %d entries: %v", made, len(flows), err)
	}
}

func addr(s string) netip.Addr     { return netip.MustParseAddr(s) }
func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

// nth is the n-th address after a.
func nth(a netip.Addr, n int) netip.Addr {
	b := a.As16()
	for i := 15; n > 0; i-- {
		n += int(b[i])
		b[i] = byte(n)
		n >>= 8
	}
	return netip.AddrFrom16(b).Unmap()
}

// tcp makes n TCP flows of one source, with different source ports.
func tcp(src string, n int, state uint8, status, timeout uint32) (flows []flow) {
	for i := range n {
		flows = append(flows, flow{
			Src: addr(src), Dst: addr("198.51.100.1"), Proto: unix.IPPROTO_TCP, SrcPort: uint16(1024 + i), DstPort: 80,
			State: state, Status: status, Timeout: timeout,
		})
	}
	return flows
}

// dump reads the whole table as flows, for tests to compare.
func dump(tb testing.TB, t *Table) (flows []entry) {
	tb.Helper()
	end, err := t.walk(tb.Context(), part{}, 0, func(e *entry) bool {
		e2 := *e
		e2.message = slices.Clone(e.message)
		flows = append(flows, e2)
		return true
	})
	if err != nil || !end.whole {
		tb.Fatalf("dump: whole %v, error %v", end.whole, err)
	}
	return flows
}

func parsePrefixes(s string) (all []netip.Prefix) {
	if s != "" {
		all = append(all, prefix(s))
	}
	return all
}
