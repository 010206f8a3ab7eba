package lab

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
)

// clockTicks is USER_HZ, fixed in the kernel's interface.
const clockTicks = 100

// processCost reads a process's own figures from /proc, with the CPU time of the children that it has
// waited for. The high-water mark there is the program's, while that of wait would include the
// moment before exec.
func processCost(pid int) Cost {
	var c Cost
	dir := fmt.Sprintf("/proc/%d/", pid)
	if b, err := os.ReadFile(dir + "stat"); err == nil {
		const utime, times = 11, 4 // after the name, see proc(5): utime, stime, cutime, cstime
		f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
		for _, ticks := range f[utime : utime+times] {
			n, _ := strconv.ParseFloat(ticks, 64) // the kernel writes numbers
			c.CPUSeconds += n / clockTicks
		}
	}
	b, err := os.ReadFile(dir + "status")
	if err != nil {
		return c
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			c.PeakRSSKiB, _ = strconv.Atoi(strings.Fields(v)[0])
		}
	}
	return c
}
