package conntrack

import (
	"context"
	"testing"
	"time"

	ctlib "github.com/ti-mo/conntrack"

	"ctguard/policy"
)

func TestCountAndMax(t *testing.T) {
	table := openTable(t)
	if n, err := table.Count(); err != nil || n != 0 {
		t.Errorf("count of a new namespace: %d, %v", n, err)
	}
	fill(t, tcp("192.0.2.1", 7, tcpSynSent, 0, 60)...)
	if n, err := table.Count(); err != nil || n != 7 {
		t.Errorf("count after 7 entries: %d, %v", n, err)
	}
	if n, err := table.Max(); err != nil || n <= 0 {
		t.Errorf("max: %d, %v", n, err)
	}
}

// The descriptors and sockets of a table stay in its namespace when the thread is elsewhere.
func TestNamespaceStays(t *testing.T) {
	table := openTable(t)
	fill(t, tcp("192.0.2.1", 7, tcpSynSent, 0, 60)...)
	done := make(chan struct{})
	go func() { // on another thread, in the namespace of the process
		defer close(done)
		if n, err := table.Count(); err != nil || n != 7 {
			t.Errorf("count: %d, %v", n, err)
		}
		c, err := table.Scan(context.Background(), ScanOptions{})
		if err != nil || c.Seen != 7 {
			t.Errorf("scan: %+v, %v", c, err)
		}
	}()
	<-done
}

func TestCounters(t *testing.T) {
	table := openTable(t)
	for range 3 { // the socket serves again and again
		c, err := table.Counters()
		if err != nil {
			t.Fatal(err)
		}
		if c != (policy.KernelCounters{}) {
			t.Errorf("a new namespace has counted %+v", c)
		}
	}
}

// ti-mo/conntrack hangs here for ever when github.com/mdlayher/netlink is newer than v1.9.0: the
// kernel ends these answers with an acknowledgement and no NLMSG_DONE.
func TestNetlinkPin(t *testing.T) {
	openTable(t)
	f := tcp("192.0.2.1", 1, tcpSynSent, 0, 60)[0]
	fill(t, f)
	lib, err := ctlib.Dial(nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { lib.Close() })
	done := make(chan struct{})
	go func() {
		defer close(done)
		stats, err := lib.StatsGlobal()
		if err != nil || stats.Entries != 1 {
			t.Errorf("StatsGlobal: %+v, %v", stats, err)
		}
		got, err := lib.Get(ctlib.NewFlow(f.Proto, 0, f.Src, f.Dst, f.SrcPort, f.DstPort, 0, 0))
		if err != nil || got.TupleOrig.IP.SourceAddress != f.Src {
			t.Errorf("Get: %+v, %v", got, err)
		}
	}()
	select {
	case <-done:
	case <-time.After(20 * time.Second):
		t.Fatal("the library hangs: is github.com/mdlayher/netlink newer than v1.9.0?")
	}
}
