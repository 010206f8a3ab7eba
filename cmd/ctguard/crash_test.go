package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"

	"ctguard/agent/conntrack"
	"ctguard/agent/conntrack/conntrackfill"
)

// crash is one point of the crash matrix: how a daemon ends, when, with which state directory, and what comes after.
type crash struct {
	entries  int           // so many others than those of conversations are in the table;
	from, to int           // it is on its way from one level to another,
	after    time.Duration // so long after it was asked to go there
	end      string        // how it ends
	disk     string        // what is wrong with the state directory
	foreign  bool          // somebody else writes a setting before anything is put back
	recovery string        // what puts everything back
}

func (c crash) String() string {
	return fmt.Sprintf("%s %s after it went from level %d to %d, %d entries, state directory %s, then %s, "+
		"foreign writer %t", c.end, c.after, c.from, c.to, c.entries, c.disk, c.recovery, c.foreign)
}

const (
	byKill, byTerm, byOOM = "SIGKILL", "SIGTERM", "OOM kill"
	panics                = "panic in the " // and the goroutine

	fine, full, readOnly, tornFile = "fine", "full", "read-only", "with a torn file"

	byStart, byRevert = "the next start", "ctguard revert"
)

// panicking are the goroutines that can be made to panic, with the function that each enters again and again.
var panicking = []struct{ goroutine, file, entry string }{
	{"loop", "agent/tick.go", "func (l *loop) tick() bool {"},
	{"walker", "agent/walks.go", "case next := <-walks:"},
	{"surveyor", "agent/survey/surveyor.go", "func (s *Surveyor) Survey() Facts {"},
	{"watchdog", "agent/watchdog.go", "case <-w.looks:"},
}

// randomCrash draws a point.
func randomCrash(r *rand.Rand, oom bool) crash {
	ends := []string{byKill, byKill, byKill, byTerm, byTerm}
	for _, p := range panicking {
		ends = append(ends, panics+p.goroutine)
	}
	if oom {
		ends = append(ends, byOOM)
	}
	pick := func(list []string) string { return list[r.IntN(len(list))] }
	c := crash{entries: r.IntN(capacity * 2 / 5), from: r.IntN(9), to: r.IntN(9),
		after: time.Duration(r.IntN(400_000)) * time.Microsecond, end: pick(ends),
		disk: pick([]string{fine, fine, full, readOnly, tornFile}), recovery: pick([]string{byStart, byRevert}),
		foreign: r.IntN(4) == 0}
	if c.disk == readOnly || c.disk == full {
		c.recovery = byRevert // a daemon refuses to start without a place for its journal
	}
	return c
}

// However the daemon ends, at any level and on the way to any, everything is as before within two seconds of the next
// start or of ctguard revert, and connections live on. CTGUARD_CRASH_POINTS says how many points are tried,
// CTGUARD_CRASH_SEED which.
func TestCrashes(t *testing.T) {
	if testing.Short() {
		t.Skip("it takes half a minute")
	}
	points, seed := 30, uint64(time.Now().UnixNano())
	for name, set := range map[string]func(uint64){
		"CTGUARD_CRASH_POINTS": func(n uint64) { points = int(n) }, "CTGUARD_CRASH_SEED": func(n uint64) { seed = n },
	} {
		if n, err := strconv.ParseUint(os.Getenv(name), 10, 63); err == nil {
			set(n)
		}
	}
	t.Logf("CTGUARD_CRASH_SEED=%d", seed)
	h := newHost(t)
	m := newMatrix(h)
	defer func() { t.Log("\n" + m.table()) }()
	r := rand.New(rand.NewPCG(seed, 0))
	for range points {
		m.try(randomCrash(r, m.memory != ""))
		if t.Failed() {
			break
		}
	}
}

// matrix tries points on one host.
type matrix struct {
	*host
	panics  string // the program with panics in it
	memory  string // where memory cgroups are made; empty where none can be
	before  map[string]string
	lasting []net.Conn
	tried   map[[2]string]int
	slowest map[[2]string]time.Duration
}

func newMatrix(h *host) *matrix {
	m := &matrix{host: h, tried: make(map[[2]string]int), slowest: make(map[[2]string]time.Duration)}
	m.panics = buildPanicking(h.T)
	m.memory = memoryGroup(h.T)
	// The state directory gets a disk of its own, in a mount namespace that ends with the test's thread.
	if err := errors.Join(unix.Unshare(unix.CLONE_NEWNS), unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""),
		unix.Mount("test", h.state, "tmpfs", 0, "size=256k,mode=755")); err != nil {
		h.Fatal(err)
	}
	m.lasting = []net.Conn{h.converse(8080), h.converse(22)}
	m.before = h.snapshot()
	return m
}

// buildPanicking builds the program so that the goroutine that CTGUARD_TEST_PANIC names panics: each that enters its
// work when the given time has come.
func buildPanicking(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	replace := make(map[string]string)
	for _, p := range panicking {
		text, err := os.ReadFile(filepath.Join(root, p.file))
		if err != nil || strings.Count(string(text), p.entry) != 1 {
			t.Fatalf("%s has not one %q (%v)", p.file, p.entry, err)
		}
		changed := strings.Replace(string(text), p.entry, fmt.Sprintf("%s\n\tstate.TestPanic(%q)\n", p.entry, p.goroutine), 1)
		if !strings.Contains(changed, `"ctguard/agent/state"`) {
			changed = strings.Replace(changed, "import (", "import (\n\t\"ctguard/agent/state\"", 1)
		}
		path := filepath.Join(dir, filepath.Base(p.file))
		if err := os.WriteFile(path, []byte(changed), 0o600); err != nil {
			t.Fatal(err)
		}
		replace[filepath.Join(root, p.file)] = path
	}
	helper := filepath.Join(dir, "panic.go")
	replace[filepath.Join(root, "agent/state/testpanic.go")] = helper
	overlay, err := json.Marshal(map[string]any{"Replace": replace})
	if err == nil {
		err = errors.Join(os.WriteFile(helper, []byte(panicHelper), 0o600),
			os.WriteFile(filepath.Join(dir, "overlay.json"), overlay, 0o600))
	}
	if err != nil {
		t.Fatal(err)
	}
	program, err := build(dir, "-overlay", filepath.Join(dir, "overlay.json"))
	if err != nil {
		t.Fatal(err)
	}
	return program
}

const panicHelper = `package state

import "os"

// TestPanic panics if this goroutine is the one that the test chose, once there is the file that it names.
func TestPanic(goroutine string) {
	if file := os.Getenv("CTGUARD_TEST_PANIC_" + goroutine); file != "" {
		if _, err := os.Stat(file); err == nil {
			panic("the test's, in the " + goroutine)
		}
	}
}
`

// memoryGroup returns where memory cgroups can be made.
func memoryGroup(t *testing.T) string {
	t.Helper()
	for _, dir := range []string{"/sys/fs/cgroup/memory", "/sys/fs/cgroup"} {
		group := filepath.Join(dir, fmt.Sprintf("ctguard-test-%d", os.Getpid()))
		if os.Mkdir(group, 0o755) != nil {
			continue
		}
		if _, err := os.Stat(limitOf(group)); err == nil {
			t.Cleanup(func() { _ = os.Remove(group) })
			return group
		}
		_ = os.Remove(group)
	}
	t.Log("no memory cgroup can be made here: no OOM kills are tried")
	return ""
}

// limitOf returns the file that bounds a memory cgroup.
func limitOf(group string) string {
	if old := filepath.Join(group, "memory.limit_in_bytes"); exists(old) {
		return old
	}
	return filepath.Join(group, "memory.max")
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// try goes through one point, and says what was left behind.
func (m *matrix) try(c crash) {
	m.Helper()
	trigger := filepath.Join(m.dir, "panic")
	if goroutine, ok := strings.CutPrefix(c.end, panics); ok {
		m.launch(m.panics, []string{"CTGUARD_TEST_PANIC_" + goroutine + "=" + trigger})
	} else {
		m.launch(m.program, nil)
	}
	m.ready()
	m.fill(c.entries)
	m.hold(c.from)
	m.spoilDisk(c)
	_ = m.ask(c.to) // a full disk can't keep it, but it goes there
	time.Sleep(c.after)
	m.end(c, trigger)
	_ = os.Remove(trigger)
	m.empty()
	expected := maps.Clone(m.before)
	if c.foreign {
		expected[foreign] = m.writeForeign()
	}
	took, err := m.recover(c, expected)
	if err != nil {
		m.Errorf("%s: %v\n%s", c, err, m.log)
	}
	m.clean()
	for _, one := range m.lasting {
		if err := exchange(one); err != nil {
			m.Errorf("%s: a connection is dead: %v", c, err)
		}
	}
	key := [2]string{c.end, c.disk}
	m.tried[key]++
	m.slowest[key] = max(m.slowest[key], took)
}

// crowd are the sources that entries are made of.
var crowd = netip.MustParsePrefix("203.0.113.0/24")

// empty takes away what fill made: the daemon that starts next is to find calm.
func (m *matrix) empty() {
	m.Helper()
	table, err := conntrack.Open()
	if err == nil {
		_, err = table.Remove(m.Context(), conntrack.EntryFilter{Source: crowd}, nil, false, nil)
		err = errors.Join(err, table.Close())
	}
	if err != nil {
		m.Fatal(err)
	}
}

// fill makes entries of a few sources, which hold more than their share.
func (m *matrix) fill(n int) {
	m.Helper()
	src, dst := crowd.Addr(), netip.MustParseAddr("198.51.100.1")
	_, err := conntrackfill.Fill(func(yield func(conntrackfill.Flow) bool) {
		for i := range n {
			if i%200 == 0 {
				src = src.Next()
			}
			if !yield(conntrackfill.Flow{Src: src, Dst: dst, Proto: unix.IPPROTO_TCP, SrcPort: uint16(1024 + i), DstPort: 80,
				State: 3, Status: conntrackfill.SeenReply | conntrackfill.Assured, Timeout: 3600}) {
				return
			}
		}
	})
	if err != nil && !errors.Is(err, unix.EEXIST) {
		m.Fatal(err)
	}
}

// spoilDisk does to the state directory what a point asks for, before the daemon goes to its last level.
func (m *matrix) spoilDisk(c crash) {
	m.Helper()
	var err error
	switch c.disk {
	case full:
		// Without room for one more byte; what is there can't grow either.
		_ = exec.Command("dd", "if=/dev/zero", "of="+filepath.Join(m.state, "ballast"), "bs=4k").Run()
	case readOnly:
		// What is open for writing keeps a file system from becoming read-only, but not its directory.
		err = immutable(m.state, true)
	case tornFile:
		err = os.WriteFile(filepath.Join(m.state, "settings.json.4711"), []byte(`{"version":1,"boot":"`), 0o600)
	}
	if err != nil {
		m.Fatal(err)
	}
}

// immutable lets nobody make, rename or remove files in a directory, or lets them again; see chattr(1), attribute i.
func immutable(dir string, yes bool) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	const attribute = 0x10 // FS_IMMUTABLE_FL
	flags := 0
	if yes {
		flags = attribute
	}
	return unix.IoctlSetPointerInt(int(d.Fd()), unix.FS_IOC_SETFLAGS, flags)
}

// end ends the daemon, and waits until it is gone.
func (m *matrix) end(c crash, trigger string) {
	m.Helper()
	var err error
	switch c.end {
	case byKill:
		err = m.daemon.Process.Kill()
	case byTerm:
		err = m.daemon.Process.Signal(unix.SIGTERM)
	case byOOM:
		err = m.runOutOfMemory()
	default:
		err = os.WriteFile(trigger, nil, 0o600)
		_ = m.daemon.Process.Signal(unix.SIGHUP) // the surveyor has work at once
	}
	if err != nil {
		m.Fatal(err)
	}
	ended := make(chan error, 1)
	go func(d *exec.Cmd) { ended <- d.Wait() }(m.daemon)
	work := time.NewTicker(patience / 6) // a walk that took long is rested from for longer: the walker gets work
	defer work.Stop()
	for late, gone, n := time.After(patience), false, 0; !gone; {
		select {
		case err = <-ended:
			gone = true
		case <-work.C:
			client, level := m.client, 8*(n%2)
			go func() { _ = ask(m.Context(), client, level) }()
			n++
		case <-late:
			m.Fatalf("%s: the daemon does not end: %s", c, m.log)
		}
	}
	if strings.HasPrefix(c.end, panics) && !strings.Contains(m.log.String(), "panic: the test's") {
		m.Errorf("%s: it ended otherwise: %v: %s", c, err, m.log)
	}
	m.daemon = nil
}

// runOutOfMemory has the kernel kill the daemon for want of memory.
func (m *matrix) runOutOfMemory() error {
	pid := strconv.Itoa(m.daemon.Process.Pid)
	join := func(pid string) error {
		return os.WriteFile(filepath.Join(m.memory, "cgroup.procs"), []byte(pid), 0o600)
	}
	err := errors.Join(os.WriteFile("/proc/"+pid+"/oom_score_adj", []byte("1000"), 0o600), join(pid),
		os.WriteFile(limitOf(m.memory), []byte("32M"), 0o600))
	if err != nil {
		return err
	}
	// Another process of the group takes the memory. The kernel takes the daemon first, and then that one.
	_ = exec.Command("sh", "-c",
		"echo $$ >"+filepath.Join(m.memory, "cgroup.procs")+"; head -c 100m /dev/zero | tail").Run()
	return nil
}

// foreign is a setting that somebody else writes after the daemon has ended.
const foreign = "nf_conntrack_udp_timeout"

func (m *matrix) writeForeign() string {
	m.Helper()
	const value = "77"
	m.write(foreign, value)
	return value
}

// write changes a setting as somebody else does.
func (m *matrix) write(name, value string) {
	m.Helper()
	if err := os.WriteFile("/proc/sys/net/netfilter/"+name, []byte(value), 0o600); err != nil {
		m.Fatal(err)
	}
}

// within is the time after which everything must be as before.
const within = 2 * time.Second

// recover puts everything back and says how long that took, and what was not put back.
func (m *matrix) recover(c crash, expected map[string]string) (time.Duration, error) {
	m.Helper()
	began := time.Now()
	if c.recovery == byRevert {
		// Where the disk is read-only it says so, and does its work all the same.
		out, err := exec.Command(m.program, "revert", "--config", m.config).CombinedOutput()
		if err != nil && c.disk != readOnly && c.disk != full {
			return 0, fmt.Errorf("revert: %w: %s", err, out)
		}
	} else {
		// The operator's hold is lifted, so that it stays at level 0.
		if err := os.Remove(filepath.Join(m.state, "operator.json")); err != nil && !errors.Is(err, os.ErrNotExist) {
			return 0, err
		}
		m.launch(m.program, nil)
		m.ready()
		defer m.stop()
	}
	for {
		list := m.different(expected)
		if c.recovery == byStart || c.disk == tornFile {
			for _, name := range m.leftovers() { // one that stays: a daemon may be writing a file now
				list = append(list, "torn file "+name)
			}
		}
		took := time.Since(began)
		if len(list) == 0 {
			return took, nil
		}
		if took > within {
			return took, fmt.Errorf("left behind: %s", strings.Join(list, "; "))
		}
	}
}

// clean makes the disk fine again, and what somebody else wrote as it was.
func (m *matrix) clean() {
	m.Helper()
	if err := immutable(m.state, false); err != nil {
		m.Fatal(err)
	}
	m.write(foreign, m.before[foreign])
	entries, err := os.ReadDir(m.state)
	for _, e := range entries {
		err = errors.Join(err, os.Remove(filepath.Join(m.state, e.Name())))
	}
	if err != nil {
		m.Fatal(err)
	}
}

// table says how many points were tried and how long the slowest took to be as before.
func (m *matrix) table() string {
	var text strings.Builder
	w := tabwriter.NewWriter(&text, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "end\tstate directory\tpoints\tas before within")
	for _, key := range slices.SortedFunc(maps.Keys(m.tried), func(a, b [2]string) int {
		return strings.Compare(a[0]+a[1], b[0]+b[1])
	}) {
		fmt.Fprintf(w, "%s\t%s\t%d\t%s\n", key[0], key[1], m.tried[key], m.slowest[key].Round(time.Millisecond))
	}
	_ = w.Flush()
	return text.String()
}
