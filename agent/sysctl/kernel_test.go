package sysctl

import (
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"

	"ctguard/agent/conntrack/conntrackfill"
	"ctguard/agent/conntrack/conntracktest"
)

// all reads every setting of the calling thread's namespace.
func all(t *testing.T) map[string]int {
	t.Helper()
	settings, err := NewSettings("/proc")
	if err != nil {
		t.Fatal(err)
	}
	values, err := settings.All()
	if err != nil {
		t.Fatal(err)
	}
	// These two belong to the whole machine.
	delete(values, "nf_conntrack_max")
	delete(values, "nf_conntrack_buckets")
	return values
}

// On the real kernel: a process changes settings and is killed, the next one puts them back, and no
// other namespace notices.
func TestKernel(t *testing.T) {
	conntracktest.Own(t)
	dir := t.TempDir()
	before := all(t)
	killed, err := NewKeeper("/proc", dir)
	if err != nil {
		t.Fatal(err)
	}
	if changes, err := killed.Apply(map[string]int{loose: 0, established: 7440}); err != nil || len(changes) != 2 {
		t.Fatalf("changes %v (%v), want two", changes, err)
	}
	if now := all(t); now[loose] != 0 || now[established] != 7440 {
		t.Errorf("the kernel has %d and %d", now[loose], now[established])
	}

	// In another namespace everything is as ever, and the journal means nothing, but stays.
	other := make(chan struct{})
	go func() {
		defer close(other)
		if err := conntrackfill.Enter(); err != nil {
			t.Error(err)
			return
		}
		k, err := NewKeeper("/proc", dir)
		if err != nil {
			t.Error(err)
			return
		}
		if changed(k) != 0 {
			t.Error("the journal was taken for this namespace's")
		}
		if now, err := k.Admin(); err != nil || now[loose] != 1 {
			t.Errorf("tcp_loose is %d in another namespace (%v)", now[loose], err)
		}
		// An agent that uses the same directory there keeps a journal beside it.
		if _, err := k.Apply(map[string]int{loose: 0}); err != nil {
			t.Error(err)
		}
		again, err := NewKeeper("/proc", dir)
		if err != nil || changed(again) != 1 {
			t.Errorf("the journal beside it is not found again (%v)", err)
			return
		}
		if _, err := again.Revert(); err != nil || all(t)[loose] != 1 {
			t.Errorf("tcp_loose is not back in the other namespace (%v)", err)
		}
	}()
	<-other

	next, err := NewKeeper("/proc", dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := next.Revert(); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, all(t)); diff != "" {
		t.Errorf("settings (-before +after):\n%s", diff)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v (%v)", left, err)
	}
}

// The kernel refuses a value: the error names it, nothing is claimed for long.
func TestKernelRefuses(t *testing.T) {
	conntracktest.Own(t)
	k, err := NewKeeper("/proc", t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	before := all(t)
	if _, err := k.Apply(map[string]int{loose: 7}); err == nil {
		t.Error("no error for tcp_loose 7")
	}
	if _, err := k.Revert(); err != nil {
		t.Error(err)
	}
	if diff := cmp.Diff(before, all(t)); diff != "" {
		t.Errorf("settings (-before +after):\n%s", diff)
	}
	if changed(k) != 0 {
		t.Error("something is still claimed")
	}
}

// The kernel rounds the buckets, which is nobody else's doing: they come back from any number.
func TestBucketsComeBack(t *testing.T) {
	conntracktest.Privileged(t)
	if testing.Short() {
		t.Skip("changes what every namespace shares")
	}
	dir := t.TempDir()
	k, err := NewKeeper("/proc", dir)
	if err != nil {
		t.Fatal(err)
	}
	before, err := k.Read(buckets)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := k.write(buckets, before); err != nil {
			t.Error(err)
		}
	})
	for _, more := range []int{1, 511, 512, 513, 1023} {
		wanted := map[string]int{buckets: before + more}
		for range 2 {
			if _, err := k.Apply(wanted); err != nil {
				t.Fatal(err)
			}
		}
		if now, err := k.Read(buckets); err != nil || now < before+more || now > before+more+os.Getpagesize() {
			t.Errorf("%d more buckets: they are %d (%v), and were %d", more, now, err, before)
		}
		if k, err = NewKeeper("/proc", dir); err != nil { // as after a kill
			t.Fatal(err)
		}
		if _, err := k.Revert(); err != nil {
			t.Fatal(err)
		}
		if now, err := k.Read(buckets); err != nil || now != before {
			t.Errorf("after %d more buckets they are %d (%v), and were %d", more, now, err, before)
		}
	}
}
