package conntrackbench

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"iter"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"ctguard/agent/conntrack"
	"ctguard/agent/conntrack/conntrackfill"
)

// Options says how large a benchmark is.
type Options struct {
	Entries int      // in the table; 0 means 1 000 000, and fewer than 400 000 leave no room for the heavy sources
	Rounds  int      // pairs behind each median; 0 means 5
	Trials  int      // sources that a sampled scan must find, in rounds of fifty; 0 means 1 000
	Child   []string // the command line that runs [Child] in a process of its own; without it, memory is not measured
	CTGuard string   // the program whose evict is measured; without it, it is not
	Only    []string // the parts to run: whole, sample, retime, evict, one, memory, find; none means all
}

const maxFile = "/proc/sys/net/netfilter/nf_conntrack_max"

// Run measures everything and writes one table in Markdown. It ends early, with everything put
// back, when ctx does or on SIGINT and SIGTERM.
func Run(ctx context.Context, w io.Writer, o Options) error {
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, unix.SIGTERM)
	defer stop()
	o.Entries, o.Rounds, o.Trials = cmp.Or(o.Entries, 1_000_000), cmp.Or(o.Rounds, 5), cmp.Or(o.Trials, 1000)
	limit, err := os.OpenFile(maxFile, os.O_RDWR, 0) // while still in the initial namespace
	if err != nil {
		return fmt.Errorf("the bound of the table must be raised, from the initial namespace: %w", err)
	}
	defer limit.Close()
	// All the time: the kernel takes what it may from a table above its bound, a little every minute.
	restore, err := raiseMax(limit, room(o.Entries))
	if err != nil {
		return err
	}
	defer restore()
	done := make(chan error, 1)
	go func() { done <- run(ctx, w, o, limit) }() // on a thread that ends with its namespace
	return <-done
}

// room is the bound under which so many entries are made and stay.
func room(entries int) int { return entries + entries/2 }

// raiseMax lets namespaces have so many entries and returns what undoes that, unless somebody else
// has set another value meanwhile.
func raiseMax(limit *os.File, entries int) (restore func(), err error) {
	read := func() (string, error) {
		var b [24]byte
		n, err := limit.ReadAt(b[:], 0)
		if err == io.EOF {
			err = nil
		}
		return strings.TrimSpace(string(b[:n])), err
	}
	was, err := read()
	if err != nil {
		return nil, fmt.Errorf("read the bound of the table: %w", err)
	}
	if n, err := strconv.Atoi(was); err == nil && (n == 0 || n >= entries) {
		return func() {}, nil
	}
	set := strconv.Itoa(entries)
	if _, err := limit.WriteAt([]byte(set), 0); err != nil {
		return nil, fmt.Errorf("raise the bound of the table: %w", err)
	}
	return func() {
		if now, err := read(); err == nil && now == set {
			_, _ = limit.WriteAt([]byte(was), 0)
		}
	}, nil
}

// bench is one run under way.
type bench struct {
	Options
	ctx    context.Context
	table  *conntrack.Table
	limit  *os.File // nf_conntrack_max
	buf    []byte
	report report
}

func run(ctx context.Context, w io.Writer, o Options, limit *os.File) error {
	if err := conntrackfill.Enter(); err != nil {
		return err
	}
	table, err := conntrack.Open()
	if err != nil {
		return err
	}
	defer table.Close()
	b := &bench{Options: o, ctx: ctx, table: table, limit: limit, buf: make([]byte, 64<<10), report: report{w: w}}
	b.report.begin(o)
	for _, part := range []struct {
		name string
		run  func() error
	}{
		{"whole", b.whole}, {"sample", b.sample}, {"retime", b.retime}, {"evict", b.evictMany},
		{"one", b.evictOne}, {"memory", b.memory}, {"find", b.find},
	} {
		if len(o.Only) > 0 && !slices.Contains(o.Only, part.name) {
			continue
		}
		if err := cmp.Or(ctx.Err(), b.report.err); err != nil {
			return err
		}
		if err := part.run(); err != nil {
			return fmt.Errorf("benchmark %s: %w", part.name, err)
		}
	}
	return b.report.err
}

// fill empties the table and makes flows in it, so many that they are the whole table.
func (b *bench) fill(n int, flows iter.Seq[conntrackfill.Flow]) error {
	if err := b.empty(); err != nil {
		return err
	}
	return b.complete(n, flows)
}

// empty deletes every entry. A pass over a million that are deleted meanwhile may miss some.
func (b *bench) empty() error {
	for {
		if n, err := b.table.Count(); err != nil || n == 0 {
			return err
		}
		if _, err := b.table.Remove(b.ctx, conntrack.EntryFilter{}, nil, false, nil); err != nil {
			return err
		}
	}
}

// complete makes those flows that are not in the table yet.
func (b *bench) complete(n int, flows iter.Seq[conntrackfill.Flow]) error {
	have := 0
	for range 5 { // somebody else may set the bound meanwhile
		if _, err := raiseMax(b.limit, room(b.Entries)); err != nil {
			return err
		}
		_, _ = conntrackfill.Fill(flows) // those that exist are refused
		var err error
		if have, err = b.table.Count(); err != nil || have == n {
			return err
		}
	}
	return fmt.Errorf("the table took %d of %d entries", have, n)
}

func (b *bench) mixed() iter.Seq[conntrackfill.Flow] {
	return func(yield func(conntrackfill.Flow) bool) {
		stopped := false
		each := func(f conntrackfill.Flow) bool { stopped = !yield(f); return !stopped }
		heavy(each)
		if !stopped {
			others(b.Entries-heavySources*heavyEntries, b.Entries/5)(each)
		}
	}
}

// timed measures one run of f.
func timed(f func() error) (time.Duration, error) {
	runtime.GC() // of what the peers left behind
	start := time.Now()
	err := f()
	return time.Since(start), err
}

// pairs measures ours against theirs in turn, and returns all times.
func (b *bench) pairs(ours, theirs func() error, after func() error) (o, t []time.Duration, err error) {
	for range b.Rounds {
		if err := b.ctx.Err(); err != nil {
			return nil, nil, err
		}
		took, err := timed(theirs)
		if err != nil {
			return nil, nil, err
		}
		t = append(t, took)
		if took, err = timed(ours); err != nil {
			return nil, nil, err
		}
		o = append(o, took)
		if after != nil {
			if err := after(); err != nil {
				return nil, nil, err
			}
		}
	}
	return o, t, nil
}

// ratio is the median of the ratios of pairs.
func ratio(a, b []time.Duration) float64 {
	var all []float64
	for i := range a {
		all = append(all, float64(a[i])/float64(b[i]))
	}
	slices.Sort(all)
	return all[len(all)/2]
}

func median(d []time.Duration) time.Duration {
	d = slices.Clone(d)
	slices.Sort(d)
	return d[len(d)/2].Round(100 * time.Microsecond)
}
