package survey

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"ctguard/agent/procfile"
)

// Sizes in bytes of what one entry costs besides its slab object: the extension of accounting and timestamps
// (struct nf_conn_counter and nf_conn_tstamp, rounded up to a power of two by kmalloc), and its bucket
// (struct hlist_nulls_head).
const (
	extensionSize = 128
	bucketSize    = 8
	entrySize     = 256 // the slab object where /proc/slabinfo can't be read
)

// ErrFixedCapacity says that nf_conntrack_max can't be changed from this network namespace.
var ErrFixedCapacity = errors.New("nf_conntrack_max is shared by all network namespaces " +
	"and can be changed in the initial one only")

// MaxEntries returns how many entries fit percent of this machine's memory. It returns [ErrFixedCapacity] outside the
// initial network namespace.
func (h *Host) MaxEntries(percent float64) (int, error) {
	// The kernel makes it read-only elsewhere (nf_conntrack_standalone_init_sysctl); root may
	// open it for writing all the same, so the mode tells.
	path := filepath.Join(h.proc, "sys/net/netfilter/nf_conntrack_max")
	info, err := os.Stat(path)
	if err != nil {
		return 0, fmt.Errorf("look for room: %w", err)
	}
	if info.Mode()&0o200 == 0 || errors.Is(unix.Access(path, unix.W_OK), unix.EROFS) {
		return 0, ErrFixedCapacity
	}
	m, err := h.Memory()
	if err != nil {
		return 0, err
	}
	return int(percent/100*float64(m.Total)) / (m.Entry + m.Bucket), nil
}

// Memory is what entries cost, in bytes.
type Memory struct {
	Total  int // of the machine
	Entry  int // of one entry: its slab object, and its accounting or timestamps where they are on
	Bucket int // of one bucket of the hash table
}

// Memory returns what entries cost on this machine.
func (h *Host) Memory() (Memory, error) {
	total, err := h.memory()
	if err != nil {
		return Memory{}, err
	}
	m := Memory{Total: total, Entry: h.objectSize(), Bucket: bucketSize}
	for _, name := range []string{"nf_conntrack_acct", "nf_conntrack_timestamp"} {
		var on int
		if h.setting("netfilter/"+name, &on) == nil && on != 0 { // a kernel may lack either
			m.Entry += extensionSize
			break
		}
	}
	return m, nil
}

// memory returns the machine's memory in bytes; see proc_meminfo(5).
func (h *Host) memory() (int, error) {
	text, err := procfile.Read(filepath.Join(h.proc, "meminfo"))
	if err != nil {
		return 0, fmt.Errorf("look for room: %w", err)
	}
	for line := range strings.Lines(string(text)) {
		var kib int
		if _, err := fmt.Sscanf(line, "MemTotal: %d kB", &kib); err == nil && kib > 0 {
			return kib << 10, nil
		}
	}
	return 0, errors.New("look for room: no MemTotal in /proc/meminfo")
}

// objectSize returns the size of an entry's slab object in bytes.
func (h *Host) objectSize() int {
	if _, size := h.slab(); size > 0 {
		return size
	}
	return entrySize
}
