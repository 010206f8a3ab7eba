package role

import (
	"time"

	"golang.org/x/sys/unix"
)

// Instant is a point of the machine's monotonic clock, comparable between
// processes, in nanoseconds.
type Instant int64

// Now reads the monotonic clock.
func Now() Instant {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		panic("monotonic clock: " + err.Error()) // cannot fail on Linux
	}
	return Instant(ts.Nano())
}

// Add returns the instant d later.
func (i Instant) Add(d time.Duration) Instant { return i + Instant(d) }

// Since is the time from i to now.
func (i Instant) Since() time.Duration { return time.Duration(Now() - i) }

// Until is the time from now to i.
func (i Instant) Until() time.Duration { return time.Duration(i - Now()) }
