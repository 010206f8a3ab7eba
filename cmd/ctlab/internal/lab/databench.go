package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strconv"
	"time"

	"ctguard/cmd/ctlab/internal/guardian"
	"ctguard/cmd/ctlab/internal/measure"
	"ctguard/cmd/ctlab/internal/round"
)

// BenchOptions says how large a benchmark of the data path is. The zero value of a number means
// its default.
type BenchOptions struct {
	CTGuard    string        // the binary
	Rounds     int           // pairs behind each median, 21
	Slice      time.Duration // how long each half of a pair is measured, 50 ms
	Levels     []int         // of the ladder, all
	Topologies []string      // both
	SkipDrops  bool          // leave out what an early drop saves
	OnlyDrops  bool          // leave out everything else

	// Log is told what happens, OnLevel and OnDrops get each figure as soon as it is known.
	Log     func(format string, args ...any)
	OnLevel func(DataLevel)
	OnDrops func(DropCost)
}

// DataBench is what came of a benchmark of the data path. Its JSON field names are stable.
type DataBench struct {
	Kernel string      `json:"kernel"`
	CPUs   int         `json:"cpus"`
	Rounds int         `json:"rounds"`
	Slice  float64     `json:"slice_seconds"`
	Levels []DataLevel `json:"levels"`
	Drops  *DropCost   `json:"drops"`
}

// DataLevel is what traffic gets with ctguard pinned at one level, against the same without ctguard; or with a few
// rules instead of ctguard, which show what the least of their kind costs.
type DataLevel struct {
	Topology string `json:"topology"`
	Level    int    `json:"level"`
	Limit    string `json:"limit,omitempty"` // those rules; there is no level then
	// Step is what this level adds to the one below, and Skipped why that does nothing here.
	Step    string `json:"step,omitempty"`
	Skipped string `json:"skipped,omitempty"`

	UDP  Pairs `json:"udp"`  // rounds of question and answer a second, on a flow that stands
	TCP  Pairs `json:"tcp"`  // connections with one request a second
	Bulk Pairs `json:"bulk"` // pieces of 64 KiB a second of one stream
}

// Pairs is what interleaved pairs gave: with ctguard, and without it on a site of the same make a
// moment before or after.
type Pairs struct {
	With  float64 `json:"with"` // medians
	None  float64 `json:"none"`
	Ratio float64 `json:"ratio"` // the median of the pairs' ratios
	Least float64 `json:"least_ratio"`
	Most  float64 `json:"most_ratio"`
	// Failed is how many rounds failed, of all pairs together.
	FailedWith uint64 `json:"failed_with"`
	FailedNone uint64 `json:"failed_none"`

	with, none, ratios []float64
}

// benchWarm is what is sent before each measurement and not counted.
const benchWarm = 5 * time.Millisecond

// benchHold is for how long a level is pinned: longer than any of the measurements.
const benchHold = "30m"

// trialPatience is how long a trial of notrack may take to end.
const trialPatience = 6 * time.Second

// dataBench is a benchmark in progress.
type dataBench struct {
	BenchOptions
	dir string
	out DataBench
}

// BenchData measures what the rules of each level cost ordinary traffic, and what a packet costs
// that is dropped before conntrack or after it.
//
// Two sites of the same make stand side by side, one with ctguard and one without, and are measured in turn, never at
// the same time. One thread is client and server (see package round), so a ratio is of what all of a round takes on one
// processor; a program that does more for a request loses less. What the agent itself takes, on another processor, is
// not in it. Table and rules are small: no limited sources, few entries.
//
// Everything is put back when it returns; with an error there may be figures all the same.
func BenchData(ctx context.Context, o BenchOptions) (out *DataBench, err error) {
	if err := privileged(); err != nil {
		return nil, err
	}
	b := &dataBench{BenchOptions: o.withDefaults()}
	b.out = DataBench{
		Kernel: kernel(), CPUs: runtime.NumCPU(), Rounds: b.Rounds, Slice: b.Slice.Seconds(),
	}
	if b.dir, err = os.MkdirTemp("", "ctlab-"); err != nil {
		return nil, err
	}
	// A table that never fills: the connections of the closed loop stay in it for two minutes.
	g, err := guardian.Protect(ctx, b.dir, map[string]string{maxSetting: strconv.Itoa(hugeTable)}, func() {
		b.Log("waiting for another lab on this machine to end")
	})
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(b.dir))
	}
	defer func() { err = errors.Join(err, g.Restore()) }()
	for _, t := range b.Topologies {
		if b.OnlyDrops {
			break
		}
		if err := b.ladder(ctx, t); err != nil {
			return &b.out, fmt.Errorf("benchmark of topology %s: %w", t, err)
		}
	}
	if b.SkipDrops {
		return &b.out, nil
	}
	if err := b.drops(ctx); err != nil {
		return &b.out, fmt.Errorf("benchmark of drops: %w", err)
	}
	return &b.out, nil
}

func (o BenchOptions) withDefaults() BenchOptions {
	// Many short pairs: what else runs on a machine comes and goes within seconds.
	def(&o.Rounds, 21)
	def(&o.Slice, 50*time.Millisecond)
	if len(o.Topologies) == 0 {
		o.Topologies = []string{"server", "nat-gateway"}
	}
	if o.Log == nil {
		o.Log = func(string, ...any) {}
	}
	if o.OnLevel == nil {
		o.OnLevel = func(DataLevel) {}
	}
	if o.OnDrops == nil {
		o.OnDrops = func(DropCost) {}
	}
	return o
}

// twins are two sites of the same make, one of them with ctguard.
type twins struct{ guarded, plain *stand }

func (b *dataBench) twins(ctx context.Context, topology string) (*twins, error) {
	t := &twins{}
	var err error
	if t.plain, err = newStand(topology); err != nil {
		return nil, err
	}
	if t.guarded, err = newStand(topology); err != nil {
		return nil, errors.Join(err, t.plain.close())
	}
	if err := errors.Join(t.plain.serve(), t.guarded.serve()); err != nil {
		return nil, errors.Join(err, t.close())
	}
	if err := b.limits(topology, t); err != nil {
		return nil, errors.Join(err, t.close())
	}
	if err = t.guarded.protect(ctx, b.CTGuard, b.dir); err != nil {
		return nil, errors.Join(err, t.close())
	}
	return t, nil
}

func (t *twins) close() error { return errors.Join(t.guarded.close(), t.plain.close()) }

// ladder measures every level on one topology.
func (b *dataBench) ladder(ctx context.Context, topology string) (err error) {
	t, err := b.twins(ctx, topology)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, t.close()) }()
	for level := range len(t.guarded.guard.status().Steps) + 1 {
		if len(b.Levels) > 0 && !slices.Contains(b.Levels, level) {
			continue
		}
		d, err := b.level(ctx, t, level)
		if err != nil {
			return fmt.Errorf("level %d: %w", level, err)
		}
		d.Topology = topology
		b.out.Levels = append(b.out.Levels, d)
		b.OnLevel(d)
	}
	return nil
}

// level pins one level and measures all kinds of traffic at it.
func (b *dataBench) level(ctx context.Context, t *twins, level int) (DataLevel, error) {
	d := DataLevel{Level: level}
	if err := t.guarded.hold(ctx, level); err != nil {
		return d, err
	}
	if err := t.guarded.endTrials(ctx); err != nil {
		return d, err
	}
	if level > 0 {
		step := t.guarded.guard.status().Steps[level-1]
		d.Step, d.Skipped = step.Name, step.Skipped
	}
	return d, b.measure(t, &d)
}

// limitRules are rules that stand for the least that something costs: they are measured instead of ctguard's.
var limitRules = []struct{ name, topology, rules string }{
	{"two empty hooks", "", hooksWith("")},
	{"notrack in two hooks, nothing else", "server", hooksWith("notrack")},
}

func hooksWith(statement string) string {
	return "table inet least {\n" +
		"chain arriving { type filter hook prerouting priority -310; " + statement + "\n}\n" +
		"chain leaving { type filter hook output priority -310; " + statement + "\n}\n}\n"
}

// limits measures those rules on the site that gets ctguard afterwards.
func (b *dataBench) limits(topology string, t *twins) (err error) {
	for _, l := range limitRules {
		if l.topology != "" && l.topology != topology || len(b.Levels) > 0 {
			continue // who asks for levels wants these
		}
		if err := nft(t.guarded.run.site.protected, l.rules); err != nil {
			return err
		}
		d := DataLevel{Topology: topology, Limit: l.name}
		if err := b.measure(t, &d); err != nil {
			return fmt.Errorf("%s: %w", l.name, err)
		}
		if err := nft(t.guarded.run.site.protected, "delete table inet least\n"); err != nil {
			return err
		}
		b.out.Levels = append(b.out.Levels, d)
		b.OnLevel(d)
	}
	return nil
}

// measure compares all kinds of traffic on both sites.
func (b *dataBench) measure(t *twins, d *DataLevel) error {
	for _, m := range []struct {
		kind  round.Kind
		pairs *Pairs
	}{{round.UDP, &d.UDP}, {round.TCP, &d.TCP}, {round.Bulk, &d.Bulk}} {
		for n := range b.Rounds {
			if err := b.pair(t, m.kind, m.pairs, n%2 == 0); err != nil {
				return fmt.Errorf("%s: %w", m.kind, err)
			}
		}
		m.pairs.finish()
	}
	return nil
}

// pair measures both sites, in an order that changes: what drifts hits both alike.
func (b *dataBench) pair(t *twins, kind round.Kind, p *Pairs, plainFirst bool) error {
	var with, none round.Result
	halves := []func() error{
		func() (err error) { none, err = t.plain.ends.Do(kind, benchWarm, b.Slice); return err },
		func() (err error) { with, err = t.guarded.ends.Do(kind, benchWarm, b.Slice); return err },
	}
	if !plainFirst {
		slices.Reverse(halves)
	}
	for _, half := range halves {
		if err := half(); err != nil {
			return err
		}
	}
	p.add(with, none)
	return nil
}

func (p *Pairs) add(with, none round.Result) {
	p.FailedWith += with.Failed
	p.FailedNone += none.Failed
	if none.Done == 0 {
		return // nothing to compare with: the machine did something else
	}
	p.with, p.none = append(p.with, with.Rate()), append(p.none, none.Rate())
	p.ratios = append(p.ratios, with.Rate()/none.Rate())
}

func (p *Pairs) finish() {
	if len(p.ratios) == 0 {
		return
	}
	p.With, p.None, p.Ratio = measure.Median(p.with), measure.Median(p.none), measure.Median(p.ratios)
	p.Least, p.Most = slices.Min(p.ratios), slices.Max(p.ratios)
}
