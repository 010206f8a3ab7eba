package lab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sync/errgroup"

	"ctguard/cmd/ctlab/internal/flood"
	"ctguard/cmd/ctlab/internal/guardian"
	"ctguard/cmd/ctlab/internal/role"
	"ctguard/cmd/ctlab/internal/service"
	"ctguard/cmd/ctlab/internal/workload"
)

// maxSetting is the global bound of every namespace's table.
const maxSetting = "/proc/sys/net/netfilter/nf_conntrack_max"

// requestTimeout is when a client gives up.
const requestTimeout = time.Second

// settleEvery is how often it is asked whether the baseline is back.
const settleEvery = 200 * time.Millisecond

// settledFor is how long it has to stay so.
const settledFor = time.Second

// run is a scenario in progress.
type run struct {
	sc       Scenario
	attack   Attack
	dir      string
	site     *site
	guard    guard
	sampler  *sampler
	leaks    []*leakWatch
	ordinary int // entries of ordinary users at the start

	services              []*role.Process
	users, flood          *role.Process
	parties               []*role.Process
	zero                  role.Instant
	before, atWork, after state
	costBefore, costAfter Cost
}

// Run runs a scenario. Everything it made or changed is gone or put back when it
// returns.
func Run(ctx context.Context, sc Scenario) (*Result, error) {
	sc = sc.withDefaults()
	if err := sc.check(); err != nil {
		return nil, err
	}
	if err := privileged(); err != nil {
		return nil, err
	}
	r := &run{sc: sc}
	r.attack, _ = attackNamed(sc.Attack)
	info, _ := guardNamed(sc.Guard)
	r.guard = info.make(sc)
	if info.capacity > 0 {
		r.sc.Capacity = info.capacity
	}
	return r.protectedRun(ctx)
}

// privileged says what is missing to run at all.
func privileged() error {
	if os.Geteuid() != 0 {
		return errors.New("the lab needs root: it makes network namespaces and lowers nf_conntrack_max for the run")
	}
	if _, err := exec.LookPath("nft"); err != nil {
		return fmt.Errorf("the lab needs the nft program: %w", err)
	}
	return nil
}

// protectedRun surrounds the run with the guardian.
func (r *run) protectedRun(ctx context.Context) (res *Result, err error) {
	if r.dir, err = os.MkdirTemp("", "ctlab-"); err != nil {
		return nil, err
	}
	if r.site, err = newSite(r.sc.Topology); err != nil {
		return nil, errors.Join(err, os.RemoveAll(r.dir))
	}
	defer r.site.close()
	if err := r.roomToLower(); err != nil {
		return nil, errors.Join(err, os.RemoveAll(r.dir))
	}
	g, err := guardian.Protect(ctx, r.dir, map[string]string{maxSetting: strconv.Itoa(r.sc.Capacity)}, func() {
		r.sc.Log("waiting for another lab on this machine to end")
	})
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(r.dir))
	}
	defer func() { err = errors.Join(err, g.Restore()) }()
	defer r.killChildren()
	defer r.closeLeaks()
	if err := r.prepare(ctx); err != nil {
		return nil, err
	}
	return r.play(ctx)
}

// roomToLower refuses to lower the limit of a machine that uses its table itself.
func (r *run) roomToLower() error {
	count, err := readNumber(countFile)
	if err != nil {
		return fmt.Errorf("is connection tracking there? %w", err)
	}
	if count > r.sc.Capacity/2 {
		return fmt.Errorf("this machine tracks %d connections itself: lowering nf_conntrack_max to %d would hurt it", count,
			r.sc.Capacity)
	}
	return nil
}

func (r *run) closeLeaks() {
	for _, w := range r.leaks {
		w.close()
	}
}

func (r *run) killChildren() {
	for _, p := range slices.Concat([]*role.Process{r.flood, r.users}, r.parties, r.services) {
		if p != nil {
			p.Kill()
		}
	}
}

// prepare starts everything but the attack, in the order in which it depends on each other.
func (r *run) prepare(ctx context.Context) (err error) {
	s := r.site
	if r.services, err = s.serve(); err != nil {
		return err
	}
	r.sc.Log("filling the table with %d entries of ordinary users", r.sc.Background)
	if err := s.background(r.sc.Background, r.sc.BackgroundSources); err != nil {
		return err
	}
	if r.ordinary, err = s.ordinaryLeft(); err != nil {
		return err
	}
	if r.flood, err = role.Spawn(s.attacker, flood.Role, r.attack.spec(r.sc, s)); err != nil {
		return err
	}
	if r.before, err = snapshot(s.protected); err != nil {
		return err
	}
	if r.leaks, err = s.watchLeaks(); err != nil {
		return err
	}
	if r.sc.StartAt == 0 {
		if err := r.startGuard(ctx); err != nil {
			return err
		}
	}
	spec := workload.Spec{
		Sources: s.clientAddrs, Session: s.session, Targets: s.clientTargets,
		HTTPPort: service.HTTPPort, HTTPRate: r.sc.HTTPRate,
		UDPPort: service.UDPPort, UDPRate: r.sc.UDPRate,
		LinePort: service.LinePort, SpeakPort: service.SpeakPort, SSHPort: service.SSHPort, Lasting: r.sc.Lasting,
		Timeout: requestTimeout,
	}
	if r.users, err = role.Spawn(s.clients, workload.Role, spec); err != nil {
		return err
	}
	return r.invite(spec)
}

func (r *run) startGuard(ctx context.Context) error {
	if err := r.guard.start(ctx, r); err != nil {
		return fmt.Errorf("guard %s: %w", r.sc.Guard, err)
	}
	return nil
}

// invite starts what the site's parties do: what clients do, with numbers of their own.
func (r *run) invite(spec workload.Spec) error {
	for _, p := range r.site.parties {
		spec.Sources, spec.Session, spec.Targets = p.from, p.from[0], []netip.Addr{p.to}
		spec.HTTPRate, spec.UDPRate, spec.Lasting, spec.Overlay = p.http, p.udp, p.lasting, p.overlay
		if spec.UDPPort = p.udpPort; p.udpPort == 0 {
			spec.UDPPort = service.UDPPort
		}
		process, err := role.Spawn(p.in, workload.Role, spec)
		if err != nil {
			return err
		}
		r.parties = append(r.parties, process)
	}
	return nil
}

// play runs the three phases and collects.
func (r *run) play(ctx context.Context) (*Result, error) {
	r.zero = role.Now().Add(100 * time.Millisecond)
	onset := r.zero.Add(r.sc.Calm)
	err := errors.Join(r.users.Start(r.zero), r.flood.Start(onset))
	for i, p := range r.parties {
		begin := r.zero
		if r.site.parties[i].late {
			begin = onset
		}
		err = errors.Join(err, p.Start(begin))
	}
	if err != nil {
		return nil, errors.Join(err, r.guard.stop(r))
	}
	r.sampler = &sampler{
		space: r.site.protected, capacity: r.sc.Capacity, level: r.guard.level, onSample: r.sc.OnSample,
	}
	phases, done := context.WithCancel(ctx)
	eg, egCtx := errgroup.WithContext(phases)
	r.costBefore = r.guard.cost()
	eg.Go(func() error { return r.sampler.run(egCtx, r.zero) })
	eg.Go(func() error { return r.watchChildren(egCtx) })
	eg.Go(func() error {
		defer done()
		return r.phases(egCtx, onset)
	})
	err = eg.Wait()
	done()
	r.costAfter = r.guard.cost()
	var out outcome
	if err == nil {
		err = r.collect(&out)
	}
	err = errors.Join(err, r.guard.stop(r))
	if err != nil {
		return nil, errors.Join(err, context.Cause(ctx))
	}
	if r.after, err = snapshot(r.site.protected); err != nil {
		return nil, err
	}
	if err := out.readLeaks(r.leaks); err != nil {
		return nil, err
	}
	return r.result(out), nil
}

// watchChildren ends the run when one of its parts died.
func (r *run) watchChildren(ctx context.Context) error {
	died := make(chan string, len(r.services)+len(r.parties)+2)
	watch := func(name string, p *role.Process) {
		go func() {
			select {
			case <-ctx.Done():
			case <-p.Exited():
				died <- name
			}
		}()
	}
	watch("clients", r.users)
	watch("flood", r.flood)
	for _, p := range r.services {
		watch("services", p)
	}
	for i, p := range r.parties {
		watch(r.site.parties[i].name, p)
	}
	select {
	case <-ctx.Done():
		return nil
	case name := <-died:
		return fmt.Errorf("the %s ended in the middle of the run", name)
	}
}

func (r *run) phases(ctx context.Context, onset role.Instant) error {
	r.sc.Log("calm for %v", r.sc.Calm)
	if err := role.WaitUntil(ctx, onset); err != nil {
		return err
	}
	r.sc.Log("attack: %s, for %v", r.attack.Summary, r.sc.AttackFor)
	if err := errors.Join(r.startLate(ctx, onset), r.restart(ctx, onset)); err != nil {
		return err
	}
	if err := role.WaitUntil(ctx, onset.Add(r.sc.AttackFor)); err != nil {
		return err
	}
	r.sc.Log("the attack is over")
	var err error
	if r.atWork, err = snapshot(r.site.protected); err != nil {
		return err
	}
	over := onset.Add(r.sc.AttackFor + r.sc.After)
	if err := role.WaitUntil(ctx, over); err != nil {
		return err
	}
	return r.settle(ctx, over.Add(r.sc.Settle))
}

// startLate starts the guard in the middle of the attack, where that is asked for.
func (r *run) startLate(ctx context.Context, onset role.Instant) error {
	if r.sc.StartAt == 0 {
		return nil
	}
	if err := role.WaitUntil(ctx, onset.Add(r.sc.StartAt)); err != nil {
		return err
	}
	r.sc.Log("the guard is started")
	return r.startGuard(ctx)
}

// restart restarts the guard in the middle of the attack, where that is asked for.
func (r *run) restart(ctx context.Context, onset role.Instant) error {
	g, ok := r.guard.(*ctguard)
	if !ok || r.sc.RestartAt == 0 {
		return nil
	}
	if err := role.WaitUntil(ctx, onset.Add(r.sc.RestartAt)); err != nil {
		return err
	}
	r.sc.Log("the guard is restarted")
	return g.restart(ctx, r)
}

// settle waits until the baseline is back and has been for a second, so that the samples
// show it, or until last.
func (r *run) settle(ctx context.Context, last role.Instant) error {
	since := role.Now()
	for last.Until() > 0 {
		if !r.settled() {
			since = role.Now()
		}
		if since.Since() > settledFor {
			return nil
		}
		if err := role.WaitUntil(ctx, role.Now().Add(settleEvery)); err != nil {
			return err
		}
	}
	return nil
}

// outcome is what the parts of the lab report.
type outcome struct {
	users   workload.Result
	parties []workload.Result // in the order of the site's
	flood   flood.Result
	// ordinary is how many entries of ordinary users were there, before and after.
	ordinaryBefore, ordinaryAfter int
	// leaked is how many packets leaked, nil where nobody looked, and examples the first of them.
	leaked   *uint64
	examples []string
}

// collect asks all parts at once: the clients' last requests and the walk over the table take a
// second each.
func (r *run) collect(out *outcome) error {
	out.ordinaryBefore = r.ordinary
	var eg errgroup.Group
	eg.Go(func() (err error) { out.ordinaryAfter, err = r.site.countOrdinary(); return err })
	eg.Go(func() error { return r.flood.Stop(&out.flood) })
	eg.Go(func() error { return r.users.Stop(&out.users) })
	out.parties = make([]workload.Result, len(r.parties))
	for i, p := range r.parties {
		eg.Go(func() error { return p.Stop(&out.parties[i]) })
	}
	return eg.Wait()
}
