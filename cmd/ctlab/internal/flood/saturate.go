package flood

import (
	"context"
	"runtime"

	"golang.org/x/sys/unix"

	"ctguard/cmd/ctlab/internal/role"
)

// saturate sends as fast as one processor can. A veth link hands a packet to its other end on the
// processor that sent it, so that one also does all the work of receiving it.
func (f *flooder) saturate(ctx context.Context, start role.Instant) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var was, one unix.CPUSet
	if unix.SchedGetaffinity(0, &was) == nil { // else the scheduler moves the sender now and then
		one.Set(lastOf(&was))
		_ = unix.SchedSetaffinity(0, &one)
		defer func() { _ = unix.SchedSetaffinity(0, &was) }()
	}
	for ctx.Err() == nil && start.Since() < f.spec.Duration && f.tx.sent < f.spec.Limit {
		for range batchMax {
			f.one()
		}
		f.tx.flush()
	}
}

// lastOf is the last processor of a set: the first ones take most of a machine's interrupts.
func lastOf(s *unix.CPUSet) int {
	last := 0
	for i, n := 0, s.Count(); n > 0; i++ {
		if s.IsSet(i) {
			last, n = i, n-1
		}
	}
	return last
}
