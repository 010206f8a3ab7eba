package scalebench

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/bits"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"ctguard/agent/config"
	"ctguard/agent/control"
	"ctguard/cmd/ctlab/internal/guardian"
	"ctguard/cmd/ctlab/internal/ns"
	"ctguard/cmd/ctlab/internal/spent"
)

// Options says how large a benchmark is.
type Options struct {
	CTGuard string        // the program
	Only    []string      // the dimensions to vary; none means all
	Most    int           // the largest size of any; 0 means all
	Settle  time.Duration // how long the agent is let alone in calm before it is watched; 0 means 1 s
	Calm    time.Duration // how long it is watched in calm; 0 means 2 s
	Attack  time.Duration // and in an attack, from its start on; 0 means 5 s
	Within  time.Duration // sizes that it does not come to are left out, and said; 0 means 6 min
	OnPoint func(Point)   // is told each figure as soon as it is known
}

// Size is what an agent guards: each namespace has so much.
type Size struct{ Entries, Sources, Services, Sockets, Namespaces int }

// Point is what one run gave.
type Point struct {
	Dimension string
	Size      int
	Calm      float64       // percent of a core
	Attack    float64       // likewise
	Decided   time.Duration // from the agent's start in an attack until half of the sources are limited, everywhere
	Rules     time.Duration // the longest from an observation to its rules in the kernel
	PeakMiB   float64       // of all processes together
	Limited   int           // sources at the end, in one namespace
	Fault     error         // why there is less than that: this machine can't, or the agent
}

// dimension is what is varied, with the sizes and how each changes the usual size.
type dimension struct {
	name  string
	sizes []int
	set   func(*Size, int)
}

var usual = Size{Entries: 62_500, Sources: 1000, Services: 5, Sockets: 200, Namespaces: 1}

var dimensions = []dimension{
	{"entries", []int{62_500, 250_000, 1_000_000, 4_000_000}, func(z *Size, n int) { z.Entries = n }},
	{"limited sources", []int{100, 1000, 10_000, mostLimited}, func(z *Size, n int) {
		z.Sources, z.Entries = n, max(z.Entries, 10*n)
	}},
	{"services", []int{5, 50, 500}, func(z *Size, n int) { z.Services = n }},
	{"sockets", []int{2000, 20_000, 200_000}, func(z *Size, n int) { z.Sockets = n }},
	{"namespaces", []int{1, 8, 64}, func(z *Size, n int) { z.Namespaces, z.Entries, z.Sources = n, 4096, 100 }},
}

// mostLimited is the most that evict.max_limited may be.
const mostLimited = 1 << 16

const (
	maxSetting     = "/proc/sys/net/netfilter/nf_conntrack_max"
	bucketsSetting = "/proc/sys/net/netfilter/nf_conntrack_buckets"
	calmFill       = 0.25
	attackFill     = 0.97
	patience       = 2 * time.Minute // until all namespaces are guarded, and until half of the sources are limited
)

// entriesPerBucket is how full the hash may be: where it has fewer buckets for a size it gets more for that long, or
// the kernel refuses entries (nf_conntrack_hash_check_insert in net/netfilter/nf_conntrack_core.c).
const entriesPerBucket = 4

// Run measures all points and returns those that it could. Everything is put back when it returns.
func Run(ctx context.Context, o Options) (points []Point, err error) {
	o.Settle, o.Calm = cmp.Or(o.Settle, time.Second), cmp.Or(o.Calm, 2*time.Second)
	o.Attack = cmp.Or(o.Attack, 5*time.Second)
	o.Most = cmp.Or(o.Most, 1<<30)
	end := time.Now().Add(cmp.Or(o.Within, 6*time.Minute))
	for _, d := range dimensions {
		if len(o.Only) > 0 && !slices.Contains(o.Only, strings.ReplaceAll(d.name, " ", "-")) {
			continue
		}
		for _, n := range d.sizes {
			if n > o.Most {
				continue
			}
			z := usual
			d.set(&z, n)
			p, err := Point{}, errors.New("left out: no time")
			if time.Now().Before(end) {
				p, err = o.protected(ctx, z)
			}
			if ctx.Err() != nil {
				return points, ctx.Err()
			}
			p.Dimension, p.Size, p.Fault = d.name, n, err
			points = append(points, p)
			if o.OnPoint != nil {
				o.OnPoint(p)
			}
		}
	}
	return points, nil
}

// protected measures a size with the settings that it takes.
func (o Options) protected(ctx context.Context, z Size) (p Point, err error) {
	settings := map[string]string{maxSetting: strconv.Itoa(1 << 23)}
	text, err := os.ReadFile(bucketsSetting)
	if err != nil {
		return p, err
	}
	buckets, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return p, err
	}
	if buckets < z.Entries/entriesPerBucket {
		// A power of two: the kernel rounds to whole pages.
		settings[bucketsSetting] = strconv.Itoa(1 << bits.Len(uint(z.Entries/entriesPerBucket-1)))
	}
	dir, err := os.MkdirTemp("", "ctlab-")
	if err != nil {
		return p, err
	}
	g, err := guardian.Protect(ctx, dir, settings, func() {})
	if err != nil {
		return p, errors.Join(err, os.RemoveAll(dir))
	}
	defer func() { err = errors.Join(err, g.Restore()) }()
	return o.measure(ctx, dir, z)
}

// run is one agent at work.
type run struct {
	dir   string
	size  Size
	hosts []*host
	cmd   *exec.Cmd
	began time.Time
	ended chan struct{}
}

func (r *run) config() string { return filepath.Join(r.dir, "ctguard.toml") }

// measure makes the hosts and has them guarded twice: in calm, and in an attack of which the agent has seen nothing
// before, or it would take all of it for usual.
func (o Options) measure(ctx context.Context, dir string, z Size) (p Point, err error) {
	var hosts []*host
	defer func() {
		for _, h := range hosts {
			h.close()
		}
	}()
	for range z.Namespaces {
		h, err := newHost(z)
		if err != nil {
			return p, err
		}
		hosts = append(hosts, h)
	}
	calm := run{dir: filepath.Join(dir, "calm"), size: z, hosts: hosts}
	err = calm.guard(ctx, o.CTGuard, calmFill, func() (err error) {
		if _, err = calm.load(ctx, o.Settle); err == nil {
			p.Calm, err = calm.load(ctx, o.Calm)
		}
		return err
	})
	if err != nil {
		return p, err
	}
	attacked := run{dir: filepath.Join(dir, "attacked"), size: z, hosts: hosts}
	return p, attacked.guard(ctx, o.CTGuard, attackFill, func() (err error) {
		decided := make(chan error, 1)
		go func() { decided <- attacked.decide(ctx, &p) }()
		p.Attack, err = attacked.load(ctx, o.Attack)
		return errors.Join(err, <-decided)
	})
}

// guard has an agent at work while f runs.
func (r *run) guard(ctx context.Context, program string, fill float64, f func() error) error {
	if err := os.Mkdir(r.dir, 0o700); err != nil {
		return err
	}
	if err := r.start(ctx, program, fill); err != nil {
		return err
	}
	return errors.Join(f(), r.stop())
}

// load watches the agent for a while and returns what it takes, in percent of a core.
func (r *run) load(ctx context.Context, d time.Duration) (float64, error) {
	before, err := spent.Family(r.cmd.Process.Pid)
	if err != nil {
		return 0, err
	}
	began := time.Now()
	select {
	case <-ctx.Done():
		return 0, ctx.Err()
	case <-r.ended:
		return 0, fmt.Errorf("the agent ended: %s", r.said())
	case <-time.After(d):
	}
	after, err := spent.Family(r.cmd.Process.Pid)
	return 100 * (after.CPUSeconds - before.CPUSeconds) / time.Since(began).Seconds(), err
}

// configure writes the configuration with which the table is so full.
func (r *run) configure(fill float64) error {
	var b bytes.Buffer
	fmt.Fprintf(&b, "socket = %q\nstate_dir = %q\n", filepath.Join(r.dir, "s"), filepath.Join(r.dir, "state"))
	if len(r.hosts) > 1 {
		fmt.Fprint(&b, "namespaces = [")
		for _, h := range r.hosts {
			fmt.Fprintf(&b, "%q, ", path(h.Namespace))
		}
		fmt.Fprint(&b, "]\n")
	}
	fmt.Fprintf(&b, "[table]\ncapacity = %d\n[evict]\nmax_limited = %d\n", int(float64(r.size.Entries)/fill),
		max(4096, min(mostLimited, r.size.Sources)))
	return os.WriteFile(r.config(), b.Bytes(), 0o600)
}

// path names a namespace of this process.
func path(n *ns.Namespace) string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), n.FD()) }

// sockets are where the agents answer.
func (r *run) sockets() (list []string, err error) {
	conf := config.Config{Socket: filepath.Join(r.dir, "s")}
	if len(r.hosts) == 1 {
		return []string{conf.Socket}, nil
	}
	for _, h := range r.hosts {
		n, err := config.ParseNamespace(path(h.Namespace))
		if err != nil {
			return nil, err
		}
		list = append(list, conf.In(n).Socket)
	}
	return list, nil
}

// start starts the agent and waits until all of it answers.
func (r *run) start(ctx context.Context, program string, fill float64) error {
	if err := r.configure(fill); err != nil {
		return err
	}
	file, err := os.OpenFile(filepath.Join(r.dir, "log"), os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = file.Close() }() // the child has its own
	r.cmd = exec.Command(program, "run", "--config", r.config())
	r.cmd.Stdout, r.cmd.Stderr = file, file
	r.began = time.Now()
	if err := r.hosts[0].Start(r.cmd); err != nil {
		return fmt.Errorf("start ctguard: %w", err)
	}
	r.ended = make(chan struct{})
	go func() {
		_ = r.cmd.Wait() // an early end is noticed
		close(r.ended)
	}()
	sockets, err := r.sockets()
	if err != nil {
		return err
	}
	until := time.Now().Add(patience)
	for _, socket := range sockets {
		client := control.NewClient(socket)
		for client.Call(ctx, "status", nil, &control.Status{}) != nil {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-r.ended:
				return fmt.Errorf("the agent ended: %s", r.said())
			case <-time.After(50 * time.Millisecond):
			}
			if time.Now().After(until) {
				return errors.Join(fmt.Errorf("the agent does not answer: %s", r.said()), r.stop())
			}
		}
	}
	return nil
}

// said is the end of the agent's log.
func (r *run) said() string {
	b, err := os.ReadFile(filepath.Join(r.dir, "log"))
	if err != nil {
		return err.Error()
	}
	return string(b[max(0, len(b)-2000):])
}

// look is how often the agent is asked whether it has decided.
const look = 250 * time.Millisecond

// decide waits until each agent limits half of the sources, and reads what else only the agents know.
func (r *run) decide(ctx context.Context, p *Point) error {
	sockets, err := r.sockets()
	if err != nil {
		return err
	}
	for _, socket := range sockets {
		client := control.NewClient(socket)
		for {
			var s control.Status
			err := client.Call(ctx, "status", nil, &s) // one of many may be starting again
			if p.Limited = len(s.Limited); err == nil && 2*p.Limited >= r.size.Sources {
				p.Rules = max(p.Rules, time.Duration(s.RulesSeconds*float64(time.Second)))
				break
			}
			if time.Since(r.began) > patience {
				return errors.Join(fmt.Errorf("%d of %d sources limited after %v", p.Limited, r.size.Sources, patience), err)
			}
			time.Sleep(look)
		}
	}
	p.Decided = time.Since(r.began)
	c, err := spent.Family(r.cmd.Process.Pid)
	p.PeakMiB = float64(c.PeakRSSKiB) / 1024
	return err
}

func (r *run) stop() error {
	_ = r.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-r.ended:
		return nil
	case <-time.After(patience):
		_ = r.cmd.Process.Kill()
		<-r.ended
		return fmt.Errorf("ctguard did not stop within %v of SIGTERM", patience)
	}
}
