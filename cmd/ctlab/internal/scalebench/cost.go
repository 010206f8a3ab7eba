package scalebench

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// cost is what processes have taken so far.
type cost struct {
	cpu     time.Duration
	peakKiB int // the sum of their high-water marks
}

// clockTick is 1/USER_HZ, fixed in the kernel's interface.
const clockTick = 10 * time.Millisecond

// costOf adds up a process and its descendants. Who has ended is not in it.
func costOf(pid int) (c cost, err error) {
	dir := fmt.Sprintf("/proc/%d/", pid)
	b, err := os.ReadFile(dir + "stat")
	if err != nil {
		return c, fmt.Errorf("what the agent takes: %w", err)
	}
	const utime, stime = 11, 12 // after the name, see proc(5)
	fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	for _, ticks := range fields[utime : stime+1] {
		n, _ := strconv.Atoi(ticks) // the kernel writes numbers
		c.cpu += time.Duration(n) * clockTick
	}
	if b, err = os.ReadFile(dir + "status"); err != nil {
		return c, fmt.Errorf("what the agent takes: %w", err)
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			c.peakKiB, _ = strconv.Atoi(strings.Fields(v)[0])
		}
	}
	threads, err := filepath.Glob(dir + "task/*/children")
	for _, thread := range threads {
		b, err := os.ReadFile(thread)
		if err != nil {
			continue // the thread has ended
		}
		for _, child := range strings.Fields(string(b)) {
			n, _ := strconv.Atoi(child)
			more, err := costOf(n)
			if err != nil {
				continue // so has the process
			}
			c.cpu, c.peakKiB = c.cpu+more.cpu, c.peakKiB+more.peakKiB
		}
	}
	return c, err
}
