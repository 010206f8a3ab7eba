package round

import (
	"net/netip"
	"runtime"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ctguard/agent/conntrack/conntracktest"
	"ctguard/cmd/ctlab/internal/ns"
)

// Rounds of each kind succeed over a link, and fail where the server is gone.
func TestRounds(t *testing.T) {
	conntracktest.Privileged(t)
	var spaces [2]*ns.Namespace
	for i := range spaces {
		var err error
		if spaces[i], err = ns.New("end"); err != nil {
			t.Fatal(err)
		}
		defer spaces[i].Close()
	}
	addrs := []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")}
	err := ns.Pair(ns.End{NS: spaces[0], Name: "eth0", Addrs: []netip.Prefix{netip.PrefixFrom(addrs[0], 24)}},
		ns.End{NS: spaces[1], Name: "eth0", Addrs: []netip.Prefix{netip.PrefixFrom(addrs[1], 24)}})
	if err != nil {
		t.Fatal(err)
	}
	e, err := Open(spaces[0], spaces[1], addrs[:1], addrs[1:])
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	for _, kind := range []Kind{UDP, TCP, Bulk} {
		res, err := e.Do(kind, 0, 20*time.Millisecond)
		if err != nil || res.Done == 0 || res.Failed > 0 || res.Rate() < float64(res.Done) {
			t.Errorf("%s: %+v, %v", kind, res, err)
		}
	}
	done := make(chan struct{})
	var interrupting sync.WaitGroup
	interrupting.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
				runtime.GC()
			}
		}
	})
	for _, kind := range []Kind{UDP, TCP, Bulk} {
		if res, err := e.Do(kind, 0, 300*time.Millisecond); err != nil || res.Done == 0 || res.Failed > 0 {
			t.Errorf("%s, while signals interrupt it: %+v, %v", kind, res, err)
		}
	}
	close(done)
	interrupting.Wait()
	if _, err := e.Do("smoke", 0, time.Millisecond); err == nil {
		t.Error("an unknown kind is no error")
	}
	_ = unix.Close(e.answer)
	e.answer = -1
	if res, _ := e.Do(UDP, 0, time.Millisecond); res.Failed == 0 {
		t.Errorf("without a server: %+v", res)
	}
}
