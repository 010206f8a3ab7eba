package state

import (
	"time"

	"golang.org/x/sys/unix"
)

// moment is when a file was written: by the wall clock, which people and daemons set, and by the clock that counts
// from the kernel's start, which nobody sets. With both the times in a file mean the same after the wall clock was set.
type moment struct {
	Wall time.Time     `json:"wall"`
	Boot string        `json:"boot,omitempty"` // the kernel's own name for the time since it was started
	Up   time.Duration `json:"up,omitempty"`   // how long that is, sleep included
}

// uptime returns the name of the time since this kernel was started, and how long that is; no name where that can't be
// told.
type uptime func() (boot string, up time.Duration)

// kernelUptime is the running kernel's.
func kernelUptime() (string, time.Duration) {
	var ts unix.Timespec
	name, err := boot("/proc")
	if err != nil || unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts) != nil {
		return "", 0
	}
	return name, time.Duration(ts.Nano())
}

// moment returns a moment of this process.
func (d *Dir) moment(now time.Time) moment {
	m := moment{Wall: now}
	m.Boot, m.Up = d.uptime()
	return m
}

// since returns what turns times that were written down at a moment into this process's, which go on when the wall
// clock is set. Of an earlier start of the kernel, or of a file that tells no moment, there is the wall clock alone.
func (d *Dir) since(m moment, now time.Time) func(time.Time) time.Time {
	then := now.Round(0) // now, by the clock that the file was written by
	if name, up := d.uptime(); name != "" && name == m.Boot {
		then = m.Wall.Add(up - m.Up)
	}
	return func(t time.Time) time.Time {
		if t.IsZero() {
			return t
		}
		return now.Add(t.Sub(then))
	}
}
