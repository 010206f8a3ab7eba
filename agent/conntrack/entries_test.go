package conntrack

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ctguard/agent/conntrack/conntrackfill"
)

// ask returns the source ports of the flows that a filter wants.
func ask(t *testing.T, table *Table, f EntryFilter) (ports []uint16) {
	t.Helper()
	err := table.Entries(t.Context(), f, func(f Entry) bool {
		ports = append(ports, f.Source.Port())
		return true
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(ports)
	return ports
}

// filtered is a table of flows that differ in what can be asked for; the source port names them.
func filtered(t *testing.T) *Table {
	table := openTable(t)
	base := flow{Src: addr("192.0.2.1"), Dst: addr("198.51.100.1"), Proto: unix.IPPROTO_TCP, DstPort: 443,
		State: tcpEstablished, Status: busy, Timeout: 430000}
	flows := make([]flow, 7)
	for i := range flows {
		flows[i] = base
		flows[i].SrcPort = uint16(i + 1)
	}
	flows[1].Src, flows[1].State, flows[1].Status, flows[1].Timeout = addr("192.0.2.2"), tcpSynSent, 0, 60
	flows[2].Proto, flows[2].State, flows[2].DstPort = unix.IPPROTO_UDP, 0, 53
	flows[2].Status, flows[2].Timeout = conntrackfill.SeenReply, 30
	flows[3].Src, flows[3].Dst = addr("2001:db8::1"), addr("2001:db8:1::1")
	flows[4].Zone = 7
	flows[5].NewDst = addr("203.0.113.9")
	flows[6].Timeout = 1000
	fill(t, flows...)
	return table
}

// A filter wants exactly what it says.
func TestEntryFilters(t *testing.T) {
	table := filtered(t)
	yes, no, zone := true, false, uint16(7)
	timeouts := map[string]int{"nf_conntrack_tcp_timeout_established": 432000}
	for name, c := range map[string]struct {
		filter EntryFilter
		want   []uint16
	}{
		"all":            {EntryFilter{}, []uint16{1, 2, 3, 4, 5, 6, 7}},
		"source":         {EntryFilter{Source: prefix("192.0.2.2/32")}, []uint16{2}},
		"destination":    {EntryFilter{Destination: prefix("2001:db8:1::/48")}, []uint16{4}},
		"either end":     {EntryFilter{Either: prefix("2001:db8::/64")}, []uint16{4}},
		"translated end": {EntryFilter{Either: prefix("203.0.113.9/32")}, []uint16{6}},
		"protocol":       {EntryFilter{Protocol: protoUDP}, []uint16{3}},
		"port":           {EntryFilter{Port: 53}, []uint16{3}},
		"state":          {EntryFilter{State: "SYN_SENT"}, []uint16{2}},
		"family":         {EntryFilter{Family: unix.AF_INET6}, []uint16{4}},
		"zone":           {EntryFilter{Zone: &zone}, []uint16{5}},
		"unanswered":     {EntryFilter{Replied: &no}, []uint16{2}},
		"not assured":    {EntryFilter{Assured: &no}, []uint16{2, 3}},
		"answered only":  {EntryFilter{Replied: &yes, Assured: &no}, []uint16{3}},
		"translated":     {EntryFilter{Translated: &yes}, []uint16{6}},
		"silent":         {EntryFilter{Silent: time.Hour, Timeouts: timeouts}, []uint16{7}},
		"nothing":        {EntryFilter{Protocol: protoUDP, Port: 54}, nil},
	} {
		if got := ask(t, table, c.filter); !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}

// A flow says what conntrack(8) says, and how long it has been silent.
func TestEntryWords(t *testing.T) {
	table := filtered(t)
	filter := EntryFilter{Translated: ptr(true),
		Timeouts: map[string]int{"nf_conntrack_tcp_timeout_established": 432000}}
	err := table.Entries(t.Context(), filter, func(f Entry) bool {
		if f.State != "ESTABLISHED" || !f.Assured || !f.Replied || !f.Translated ||
			f.ReplySource.Addr() != addr("203.0.113.9") ||
			f.Destination != netip.MustParseAddrPort("198.51.100.1:443") ||
			f.Silent < 1990*time.Second || f.Silent > 2010*time.Second || f.ID == 0 {
			t.Errorf("got %+v", f)
		}
		return true
	})
	if err != nil {
		t.Fatal(err)
	}
}

func ptr[T any](v T) *T { return &v }

// Removing takes what the filter wants but for the allowlist, and a dry run only counts.
func TestRemove(t *testing.T) {
	table := filtered(t)
	f := EntryFilter{Protocol: protoTCP}
	spare := []netip.Prefix{prefix("192.0.2.2/32")}
	if n, err := table.Remove(t.Context(), f, spare, true, nil); err != nil || n != 5 {
		t.Fatalf("would remove %d (%v), want 5", n, err)
	}
	if left := len(dump(t, table)); left != 7 {
		t.Fatalf("a dry run left %d of 7", left)
	}
	if n, err := table.Remove(t.Context(), f, spare, false, nil); err != nil || n != 5 {
		t.Fatalf("removed %d (%v), want 5", n, err)
	}
	if got := ask(t, table, EntryFilter{}); !slices.Equal(got, []uint16{2, 3}) {
		t.Errorf("left %v, want the spared one and what was not asked for", got)
	}
}
