package survey

import (
	"fmt"
	"path/filepath"
	"runtime"
	"strings"

	"ctguard/agent/procfile"
)

// slackPerCPU is how many free objects of a slab the kernel may count as used on each CPU: its magazines
// of them are not looked into for slabinfo(5).
const slackPerCPU = 256

// OtherNamespaces returns how many entries other network namespaces have, for a host that has none itself: what
// the namespace of process 1 has, or else what the machine's memory holds for certain; 0 where neither can
// be known.
func (h *Host) OtherNamespaces() int {
	if n := h.initCount(); n > 0 {
		return n
	}
	objects, _ := h.slab()
	return max(0, objects-slackPerCPU*runtime.NumCPU())
}

// initCount returns how many entries the namespace of process 1 has: the first number of the second line.
func (h *Host) initCount() (n int) {
	text, err := procfile.Read(filepath.Join(h.proc, "1/net/stat/nf_conntrack"))
	if err != nil {
		return 0
	}
	_, line, _ := strings.Cut(string(text), "\n")
	_, _ = fmt.Sscanf(line, "%x", &n) // what is not there is 0
	return n
}

// slab returns how many entries the machine has memory in use for, and the size of one; see slabinfo(5).
func (h *Host) slab() (objects, size int) {
	text, err := procfile.Read(filepath.Join(h.proc, "slabinfo"))
	if err != nil {
		return 0, 0
	}
	for line := range strings.Lines(string(text)) {
		var all int
		if _, err := fmt.Sscanf(line, "nf_conntrack %d %d %d", &objects, &all, &size); err == nil {
			return objects, size
		}
	}
	return 0, 0
}
