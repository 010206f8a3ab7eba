package audit

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/procfs"

	"ctguard/agent/conntrack"
	"ctguard/agent/state"
	"ctguard/agent/survey"
	"ctguard/agent/sysctl"
	"ctguard/policy"
)

// lookAgain is how long a reader waits to see what moves: a connection that is alive has said something by then.
const lookAgain = 3 * time.Second

// Reader gathers the facts of a host. It changes nothing.
type Reader struct {
	Root  string // "/", except in tests
	Quick bool   // look once only: nothing is known of rates and one-way routes
	State string // the daemon's state directory
}

// Read returns the facts of the calling thread's network namespace. What can't be read is left out and named in
// [Facts.Unread]; only the end of ctx is an error.
func (r Reader) Read(ctx context.Context) (*Facts, error) {
	f := &Facts{Settings: make(map[string]int)}
	host := survey.New(r.Root)
	r.settings(f)
	r.files(f)
	err := f.readRules()
	f.NoRules = err != nil
	f.note(err)
	f.Legacy, f.LegacyChains = r.legacy(), host.LegacyChains()
	f.Helpers = r.helpers()
	if !f.Loaded {
		return f, ctx.Err()
	}
	f.Memory, err = host.Memory()
	f.note(err)
	if f.Services, err = host.Services(); err == nil {
		f.Pinned, err = host.Refused(f.Services)
	}
	f.note(err)
	if inside, err := host.Inside(); err == nil { // else the services told why
		f.Rules.Inside = inside
	}
	if forwarded, err := host.Forwarded(); err == nil && f.Pinned != nil {
		f.Forwarded = forwarded.Services
		maps.Copy(f.Pinned, forwarded.Refused)
	}
	err = r.table(ctx, f, host)
	f.NoTable = err != nil
	f.note(err)
	if f.Count == 0 {
		f.Elsewhere = host.OtherNamespaces()
	}
	return f, ctx.Err()
}

// note keeps what could not be read.
func (f *Facts) note(err error) {
	if err != nil && !errors.Is(err, context.Canceled) {
		f.Unread = append(f.Unread, err.Error())
	}
}

// path returns where a file of the host is.
func (r Reader) path(name string) string { return filepath.Join(r.Root, name) }

// settings reads the settings in force.
func (r Reader) settings(f *Facts) {
	s, err := sysctl.NewSettings(r.path("proc"))
	if errors.Is(err, sysctl.ErrNoConntrack) {
		return
	}
	if err == nil {
		f.Loaded = true
		f.Settings, err = s.All()
	}
	f.note(err)
	// The kernel makes the limit read-only outside the initial namespace.
	info, err := os.Stat(r.path("proc/sys/net/netfilter/nf_conntrack_max"))
	f.Shared = err == nil && info.Mode()&0o200 == 0
}

// table looks at the entries, and again after a while.
func (r Reader) table(ctx context.Context, f *Facts, host *survey.Host) error {
	table, err := conntrack.Open()
	if err != nil {
		return err
	}
	defer table.Close()
	start := time.Now()
	if f.Count, err = table.Count(); err != nil {
		return err
	}
	f.CPUs = r.counters()
	first, err := table.Scan(ctx, conntrack.ScanOptions{Limit: conntrack.SampleSize})
	if err != nil {
		return err
	}
	own, err := host.Own()
	f.note(err)
	here := place{own, f.Rules.Inside, f.Forwarded, f.Settings[established]}
	if f.Table, err = walk(ctx, table, r.silence(f), here); err != nil {
		return err
	}
	if f.Left, err = table.Count(); err != nil || r.Quick {
		return err
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(lookAgain - time.Since(first.Time)):
	}
	f.Later, f.Waited = r.counters(), time.Since(start).Round(100*time.Millisecond)
	second, err := table.Scan(ctx, conntrack.ScanOptions{Limit: conntrack.SampleSize})
	if err != nil {
		return err
	}
	f.OneWay = renewed(first, second)
	return nil
}

// silence returns what it is told from how long entries have been silent: the settings, and what a daemon gave to
// entries that may be there still. Where that can't be read, nothing is.
func (r Reader) silence(f *Facts) conntrack.EntryFilter {
	given, err := state.At(r.State).Retimed(time.Now())
	if f.note(err); err != nil {
		return conntrack.EntryFilter{}
	}
	return conntrack.EntryFilter{Timeouts: f.Settings, Retimed: given}
}

// renewed counts the one-way flows that both have and that a packet came for between them: each packet sets an
// entry's time anew, so that it has lost less of it than has passed.
func renewed(first, second *policy.Census) (n int) {
	left := make(map[uint32]uint32, len(first.OneWay))
	for _, flow := range first.OneWay {
		left[flow.ID] = flow.Left
	}
	// At least so many whole seconds lie between the two looks at any entry, and an entry of which no packet came has
	// lost as many: the kernel counts whole ones too.
	passed := uint32(second.Time.Add(-second.Took).Sub(first.Time) / time.Second)
	for _, flow := range second.OneWay {
		if before, ok := left[flow.ID]; ok && flow.Left+passed > before {
			n++
		}
	}
	return n
}

// counters returns the kernel's counters of each CPU; nil where it has no such file.
func (r Reader) counters() []procfs.ConntrackStatEntry {
	fs, err := procfs.NewFS(r.path("proc/thread-self")) // the namespace of this thread, not of the process's first
	if err != nil {
		return nil
	}
	cpus, err := fs.ConntrackStat()
	if err != nil {
		return nil
	}
	return cpus
}

// helpers returns the helpers that somebody loaded. Those built into the kernel have no state.
func (r Reader) helpers() (names []string) {
	states, _ := filepath.Glob(r.path("sys/module/nf_conntrack_*/initstate"))
	for _, path := range states {
		name := filepath.Base(filepath.Dir(path))
		if name != "nf_conntrack_netlink" && name != "nf_conntrack_bridge" && name != "nf_conntrack_broadcast" {
			names = append(names, name)
		}
	}
	return names
}

// legacy returns the tables of iptables-legacy that have rules, as "program table".
func (r Reader) legacy() (tables []string) {
	for _, one := range []struct {
		file, program string
		level         int
	}{{"ip_tables_names", "iptables", levelIPv4}, {"ip6_tables_names", "ip6tables", levelIPv6}} {
		text, err := os.ReadFile(r.path(filepath.Join("proc/thread-self/net", one.file)))
		if err != nil {
			continue // no such tables in this kernel
		}
		for _, table := range strings.Fields(string(text)) {
			if hasLegacyRules(one.level, table) {
				tables = append(tables, one.program+" "+table)
			}
		}
	}
	slices.Sort(tables)
	return tables
}

// limitOf says that a file was not read to its end.
func limitOf(path string, most int) error {
	return fmt.Errorf("%s is larger than %d bytes", path, most)
}
