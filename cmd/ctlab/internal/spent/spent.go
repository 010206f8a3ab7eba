// Package spent tells what running processes have taken so far, from /proc.
package spent

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Cost is what a process has taken.
type Cost struct {
	CPUSeconds float64 // with that of the children that it has waited for
	PeakRSSKiB int     // its high-water mark, which is the program's: that of wait would include the moment before exec
}

// clockTicks is USER_HZ, fixed in the kernel's interface.
const clockTicks = 100

// Process returns what a process has taken so far; an error says that it has ended.
func Process(pid int) (c Cost, err error) {
	dir := fmt.Sprintf("/proc/%d/", pid)
	b, err := os.ReadFile(dir + "stat")
	if err != nil {
		return c, fmt.Errorf("what a process has taken: %w", err)
	}
	const utime, times = 11, 4 // after the name, see proc(5): utime, stime, cutime, cstime
	f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	for _, ticks := range f[utime : utime+times] {
		n, _ := strconv.ParseFloat(ticks, 64) // the kernel writes numbers
		c.CPUSeconds += n / clockTicks
	}
	if b, err = os.ReadFile(dir + "status"); err != nil {
		return c, fmt.Errorf("what a process has taken: %w", err)
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			c.PeakRSSKiB, _ = strconv.Atoi(strings.Fields(v)[0])
		}
	}
	return c, nil
}

// Family returns what a process and its descendants have taken together, the sum of their high-water marks included.
// A descendant that has just ended is not in it.
func Family(pid int) (Cost, error) {
	c, err := Process(pid)
	if err != nil {
		return c, err
	}
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, thread := range threads {
		b, _ := os.ReadFile(thread) // a thread that has ended has none
		for _, child := range strings.Fields(string(b)) {
			n, _ := strconv.Atoi(child)
			if more, err := Family(n); err == nil {
				c.CPUSeconds, c.PeakRSSKiB = c.CPUSeconds+more.CPUSeconds, c.PeakRSSKiB+more.PeakRSSKiB
			}
		}
	}
	return c, err
}
