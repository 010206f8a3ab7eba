package conntrack

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"

	"ctguard/policy"
)

// ErrNotLoaded says that the kernel has no connection tracking in this namespace: the module
// nf_conntrack is not loaded, or /proc/sys is not there.
var ErrNotLoaded = errors.New("connection tracking is not loaded")

const sysctlRoot = "/proc/sys/net/netfilter/"

// Table is the conntrack table of one network namespace. Its methods may be called from several
// goroutines; those that walk the table wait for each other.
type Table struct {
	count, max          *os.File // they stay bound to the namespace they were opened in
	established, stream *os.File // likewise: the timeouts of open TCP connections and of UDP streams
	home                *os.File // that namespace

	mu        sync.Mutex // guards what a walk reuses
	buf       []byte
	entry     entry
	tally     tally
	looks     looks
	silences  silences
	comebacks comebacks

	statsMu sync.Mutex
	stats   *socket
	force   *Capabilities // tests: what to believe of the kernel instead of probing it
}

// Open opens the table of the network namespace that the calling thread is in. A caller that
// switches namespaces locks the thread around the switch and Open.
func Open() (*Table, error) {
	t := &Table{buf: make([]byte, receiveBuffer)}
	if err := t.open(); err != nil {
		t.Close()
		return nil, fmt.Errorf("open conntrack table: %w", err)
	}
	return t, nil
}

func (t *Table) open() (err error) {
	runtime.LockOSThread() // all descriptors from one namespace
	defer runtime.UnlockOSThread()
	if t.home, err = os.Open("/proc/thread-self/ns/net"); err != nil {
		return err
	}
	for name, file := range map[string]**os.File{
		"nf_conntrack_count": &t.count, "nf_conntrack_max": &t.max, tcpTimeout + "established": &t.established,
		"nf_conntrack_udp_timeout_stream": &t.stream,
	} {
		if *file, err = os.Open(sysctlRoot + name); errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("%w: %w", ErrNotLoaded, err)
		} else if err != nil {
			return err
		}
	}
	t.stats, err = dial()
	return err
}

// Close releases the table's descriptors. The table must not be in use.
func (t *Table) Close() error {
	var errs []error
	for _, f := range []*os.File{t.count, t.max, t.established, t.stream, t.home} {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	if t.stats != nil {
		errs = append(errs, t.stats.close())
	}
	t.tally.sources.release()
	return errors.Join(errs...)
}

// Count returns the number of entries in the namespace's table, expired ones that nobody has
// collected yet included (net.netfilter.nf_conntrack_count).
func (t *Table) Count() (int, error) { return readNumber(t.count) }

// Max returns the number of entries that the kernel allows in each namespace's table
// (net.netfilter.nf_conntrack_max); 0 means no bound.
func (t *Table) Max() (int, error) { return readNumber(t.max) }

// room is how many entries there may be, as far as it is known.
func (t *Table) room() int {
	for _, read := range []func() (int, error){t.Max, t.Count} {
		if n, err := read(); err == nil && n > 0 {
			return n
		}
	}
	return 0
}

// readNumber reads a sysctl from its start; the kernel makes a fresh value for each read there.
func readNumber(f *os.File) (int, error) {
	var b [24]byte
	n, err := unix.Pread(int(f.Fd()), b[:], 0)
	if err != nil {
		return 0, fmt.Errorf("read %s: %w", f.Name(), err)
	}
	v, err := strconv.Atoi(string(bytes.TrimSpace(b[:n])))
	if err != nil {
		return 0, fmt.Errorf("read %s: %w", f.Name(), err)
	}
	return v, nil
}

// dial opens a socket in the table's own namespace, whatever namespace the calling thread is in.
func (t *Table) dial() (*socket, error) {
	runtime.LockOSThread()
	if here, err := t.here(); err != nil || here {
		defer runtime.UnlockOSThread()
		return dial()
	}
	away, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		runtime.UnlockOSThread()
		return nil, fmt.Errorf("find own network namespace: %w", err)
	}
	defer away.Close()
	if err := unix.Setns(int(t.home.Fd()), unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return nil, fmt.Errorf("enter the table's network namespace: %w", err)
	}
	s, dialErr := dial()
	if err := unix.Setns(int(away.Fd()), unix.CLONE_NEWNET); err != nil {
		// The thread stays locked, so that no other goroutine ever runs in the wrong namespace.
		return nil, errors.Join(dialErr, fmt.Errorf("leave the table's network namespace: %w", err))
	}
	runtime.UnlockOSThread()
	return s, dialErr
}

// here says whether the calling thread is in the table's namespace.
func (t *Table) here() (bool, error) {
	var home, thread unix.Stat_t
	if err := unix.Fstat(int(t.home.Fd()), &home); err != nil {
		return false, err
	}
	if err := unix.Stat("/proc/thread-self/ns/net", &thread); err != nil {
		return false, err
	}
	return home.Ino == thread.Ino && home.Dev == thread.Dev, nil
}

// Counters returns the kernel's statistics of this namespace, summed over all CPUs.
func (t *Table) Counters() (policy.KernelCounters, error) {
	t.statsMu.Lock()
	defer t.statsMu.Unlock()
	var sum policy.KernelCounters
	s := t.stats
	s.seq++
	b := appendMessage(nil, msgGetStatsCPU, unix.NLM_F_DUMP, s.seq, unix.AF_UNSPEC)
	if err := s.send(b); err != nil {
		return sum, err
	}
	var buf [16 << 10]byte
	for {
		datagram, err := s.receive(buf[:], 0)
		if err != nil {
			return sum, fmt.Errorf("read conntrack statistics: %w", err)
		}
		done, err := addCounters(&sum, datagram, s.seq)
		if err != nil || done {
			return sum, err
		}
	}
}

// addCounters adds the CPUs of one datagram and says whether it ended the answer.
func addCounters(sum *policy.KernelCounters, datagram []byte, seq uint32) (done bool, err error) {
	for len(datagram) > 0 {
		var m message
		if m, datagram, err = nextMessage(datagram); err != nil {
			return false, fmt.Errorf("read conntrack statistics: %w", err)
		}
		if m.seq != seq {
			continue // what an earlier call left behind when it failed
		}
		switch m.kind {
		case unix.NLMSG_ERROR, unix.NLMSG_DONE:
			if errno := m.errorCode(); errno != 0 {
				return false, fmt.Errorf("read conntrack statistics: %w", errno)
			}
			return true, nil
		case msgGetStatsCPU:
			addCPU(sum, m.payload)
		}
	}
	return false, nil
}

func addCPU(sum *policy.KernelCounters, b []byte) {
	if len(b) < familyLen {
		return
	}
	for b = b[familyLen:]; ; {
		kind, value, rest, ok := attr(b)
		if !ok {
			return
		}
		switch v := uint64(beUint32(value)); kind {
		case statsInvalid:
			sum.Invalid += v
		case statsInsertFailed:
			sum.InsertFailed += v
		case statsDrop:
			sum.Drop += v
		}
		b = rest
	}
}
