package conntrack

import (
	"bytes"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// record keeps the datagrams of a real dump, to read again from memory.
func recordDump(tb testing.TB) (t *Table, datagrams [][]byte, entries int) {
	t = openTable(tb)
	var flows []flow
	for i := range 1500 { // as much as a processor keeps near, as it does with what it has just received
		f := tcp("192.0.2.1", 1, tcpEstablished, busy, 3000)[0]
		f.Src, f.SrcPort = nth(f.Src, i%777), uint16(i)
		switch i % 5 {
		case 3:
			f.Src, f.Dst = nth(addr("2001:db8::"), i), addr("2001:db8:1::1")
		case 4:
			f.Proto, f.State, f.Status = unix.IPPROTO_UDP, 0, 0
		}
		flows = append(flows, f)
	}
	flows = append(flows, mixed()...)
	fill(tb, flows...)
	s, err := t.dial()
	if err != nil {
		tb.Fatal(err)
	}
	defer s.close()
	if err := s.send(dumpRequest(part{})); err != nil {
		tb.Fatal(err)
	}
	for more := true; more; {
		b, err := s.receive(t.buf, 0)
		if err != nil {
			tb.Fatal(err)
		}
		datagrams = append(datagrams, bytes.Clone(b))
		var end ending
		more, err = t.visitAll(b, &end, func(*entry) bool { return true })
		if err != nil {
			tb.Fatal(err)
		}
	}
	return t, datagrams, len(flows)
}

func BenchmarkParse(b *testing.B) {
	t, datagrams, entries := recordDump(b)
	b.ReportAllocs()
	start := time.Now()
	for b.Loop() {
		var end ending
		for _, d := range datagrams {
			if _, err := t.visitAll(d, &end, func(*entry) bool { return true }); err != nil {
				b.Fatal(err)
			}
		}
	}
	b.ReportMetric(float64(time.Since(start).Nanoseconds())/float64(b.N)/float64(entries), "ns/entry")
}

func BenchmarkTally(b *testing.B) {
	t, datagrams, entries := recordDump(b)
	t.tally.reset(ScanOptions{}.withDefaults(), 1_000_000)
	b.ReportAllocs()
	start := time.Now()
	for b.Loop() {
		var end ending
		for _, d := range datagrams {
			if _, err := t.visitAll(d, &end, t.tally.add); err != nil {
				b.Fatal(err)
			}
		}
	}
	b.ReportMetric(float64(time.Since(start).Nanoseconds())/float64(b.N)/float64(entries), "ns/entry")
}

// A scan must not allocate for an entry: on a host under attack that would be a million times.
func TestScanAllocatesNothingPerEntry(t *testing.T) {
	table, datagrams, entries := recordDump(t)
	table.tally.reset(ScanOptions{}.withDefaults(), entries)
	allocs := testing.AllocsPerRun(10, func() {
		var end ending
		for _, d := range datagrams {
			if _, err := table.visitAll(d, &end, table.tally.add); err != nil {
				t.Fatal(err)
			}
		}
		table.tally.sources.settle()
	})
	if allocs > 2 { // the closure for each run
		t.Errorf("%v allocations for %d entries", allocs, entries)
	}
}
