package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"

	"ctguard/agent/conntrack"
	"ctguard/agent/host"
	"ctguard/agent/sysctl"
	"ctguard/nft"
	"ctguard/policy"
)

// Agent guards the conntrack table of one network namespace.
type Agent struct {
	config   Config
	dryRun   bool
	log      *slog.Logger
	stack    stack
	surveyor *surveyor
	table    reader
	actuator actuator
	settings keeper
	machine  *policy.Machine
	release  []func() error // what New opened, to be closed in reverse order
	status   atomic.Pointer[Status]
	metrics  *metrics
	asks     chan func(*Agent) // from the control socket, run between two ticks
	changed  chan struct{}     // closed and replaced at each event, for those who follow
	ready    func()
	missing  []string // what this kernel can't do
	recorder *recorder

	// What follows belongs to the loop's goroutine.
	facts      facts
	last       policy.Observation
	census     *policy.Census // the newest scan
	fresh      bool           // no tick has seen census yet
	evictedFor *policy.Census
	evicting   time.Duration // how long that took
	scans      *rate.Limiter // see newAllowance
	freed      map[policy.Selector]bool
	purged     time.Time         // when classes were last purged
	adopted    time.Time         // when the newest adoption that has ended began
	adoptAgain time.Time         // after a failure, when to try again
	noted      []policy.Selector // what is on disk as living untracked
	slowest    time.Duration     // the longest from an observation to its rules in the kernel
	retimedTo  map[string]int
	retimedAt  time.Time
	setTo      map[string]int // the settings last wanted
	setAt      time.Time      // when they were last looked at
	retimed    uint64
	lonely     lonely
	decision   policy.Decision
	events     history
	troubles   map[string]string
	walking    bool
	due        bool // an operator changed something: tick at once
}

// stack is what the loop reads of the protocol stack; *host.Host is one.
type stack interface {
	Arrivals() (policy.Arrivals, error)
	Sockets() (int, error)
}

// Options are what the command line adds to the configuration.
type Options struct {
	DryRun bool
	Record string // file to write observations and decisions to; empty for none
	Root   string // "/" except in tests: where /proc, /etc, /sys and /run are found
	Log    *slog.Logger
	Ready  func() // called once the agent guards the table
}

// ErrRunning says that another agent guards this network namespace.
var ErrRunning = errors.New("another ctguard guards this network namespace")

// New opens everything the agent needs in the network namespace of the calling thread, and puts
// back what an earlier process left behind. Nothing else is changed before [Agent.Run].
func New(c Config, o Options) (*Agent, error) {
	a := &Agent{config: c, dryRun: o.DryRun, log: o.Log, ready: o.Ready,
		asks: make(chan func(*Agent)), changed: make(chan struct{}), troubles: make(map[string]string), scans: newAllowance()}
	if err := a.open(o); err != nil {
		return nil, errors.Join(err, a.close())
	}
	return a, nil
}

// open does the work of New.
func (a *Agent) open(o Options) error {
	if os.Geteuid() != 0 {
		return errors.New("ctguard needs root, or CAP_NET_ADMIN in a user namespace of its own: run it with sudo")
	}
	c := a.config
	if err := a.claim(); err != nil {
		return err
	}
	options, missing, lacking, err := probe()
	if err != nil {
		return err
	}
	a.missing = missing
	rules, err := nft.Open(options...)
	if err != nil {
		return err
	}
	a.release = append(a.release, rules.Close)
	settings, err := a.openSettings(o)
	if err != nil {
		return err
	}
	table, err := conntrack.Open()
	if err != nil {
		return err
	}
	a.release = append(a.release, table.Close)
	a.table, a.settings = table, settings
	here := host.New(o.Root)
	if a.dryRun {
		a.actuator = &dry{settings: settings}
	} else {
		a.actuator = &live{walker: table, ruleset: rules, settings: settings,
			evicting: rate.NewLimiter(evictionsPerSecond, evictionsPerSecond),
			retiming: rate.NewLimiter(retimesPerSecond, retimesPerSecond),
			adopting: rate.NewLimiter(adoptionsPerSecond, adoptionsPerSecond), connections: here.Established}
	}
	a.adoptOrphans()
	a.stack = here
	a.lonely.elsewhere = here.Elsewhere
	a.surveyor = &surveyor{host: here, config: c, lacking: lacking}
	a.machine = policy.New(c.Policy)
	a.metrics = newMetrics()
	if o.Record != "" {
		if a.recorder, err = newRecorder(o.Record, c.Policy); err != nil {
			return err
		}
		a.release = append(a.release, a.recorder.close)
	}
	a.restore()
	return nil
}

// openSettings opens the settings and puts back what an earlier process did not. A dry run has no
// state directory and leaves everything as it is.
func (a *Agent) openSettings(o Options) (*sysctl.Keeper, error) {
	proc := o.Root + "/proc"
	if a.dryRun {
		return sysctl.NewKeeper(proc, "")
	}
	if err := a.prepareStateDir(); err != nil {
		return nil, err
	}
	settings, err := sysctl.NewKeeper(proc, a.config.StateDir)
	if errors.Is(err, sysctl.ErrDamaged) {
		// A host without a guard is worse than a setting that stays as it is.
		var aside string
		if aside, err = sysctl.SetAside(a.config.StateDir); err == nil {
			a.emit(policy.Event{Kind: policy.DegradedEvent, Reason: "the journal of an earlier run is damaged: set aside as " + aside +
				"; settings it had changed stay as they are"})
			settings, err = sysctl.NewKeeper(proc, a.config.StateDir)
		}
	}
	if err != nil {
		return nil, err
	}
	changes, err := settings.Revert()
	if len(changes) > 0 {
		a.emit(policy.Event{Kind: policy.RepairEvent, Reason: "left by an earlier run: " + summary(changes)})
	}
	if err != nil {
		return nil, err
	}
	removed, err := nft.Revert()
	if removed {
		a.emit(policy.Event{Kind: policy.RepairEvent, Reason: "left by an earlier run: table inet " + nft.Name + " removed"})
	}
	return settings, err
}

// close gives back everything that New opened.
func (a *Agent) close() error {
	var errs []error
	for i := len(a.release) - 1; i >= 0; i-- {
		errs = append(errs, a.release[i]())
	}
	a.release = nil
	return errors.Join(errs...)
}

// Run guards the table until ctx ends, then takes every step back. hup asks for the configuration
// to be read again.
func (a *Agent) Run(ctx context.Context, hup <-chan os.Signal) error {
	server, err := a.listen()
	if err != nil {
		return errors.Join(err, a.close())
	}
	group, ctx := errgroup.WithContext(ctx)
	walks := make(chan walk, 1)
	walked := make(chan func(*Agent), 1)
	surveys := make(chan facts, 1)
	reload := make(chan *surveyor, 1)
	a.learn(a.surveyor.survey())
	group.Go(func() error { return walkLoop(ctx, walks, walked) })
	group.Go(func() error { return surveyLoop(ctx, a.surveyor, reload, surveys) })
	group.Go(func() error { return server.serve(ctx) })
	group.Go(func() error { return a.loop(ctx, loopChannels{walks, walked, surveys, reload, hup}) })
	err = group.Wait()
	if errors.Is(err, context.Canceled) {
		err = nil
	}
	return errors.Join(err, a.revert(), a.close())
}

// loopChannels are how the loop talks to the other goroutines.
type loopChannels struct {
	walks   chan<- walk
	walked  <-chan func(*Agent)
	surveys <-chan facts
	reload  chan *surveyor
	hup     <-chan os.Signal
}

// loop ticks until ctx ends.
func (a *Agent) loop(ctx context.Context, ch loopChannels) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-timer.C:
			a.tick()
			if a.ready != nil {
				a.ready()
				a.ready = nil
			}
			timer.Reset(a.decision.Next)
		case result := <-ch.walked:
			a.walking = false
			result(a)
			if a.fresh || a.due {
				a.due = false
				timer.Reset(0) // who fills the table is news, and so is that all have entries
			}
		case f := <-ch.surveys:
			a.learn(f)
		case ask := <-a.asks:
			ask(a)
			if a.due { // those who only read must not set the pace
				a.due = false
				timer.Reset(0)
			}
		case <-ch.hup:
			if s := a.reload(); s != nil {
				select {
				case <-ch.reload: // an earlier one that nobody has taken yet
				default:
				}
				ch.reload <- s
			}
		}
		if !a.walking {
			if w := a.nextWalk(time.Now()); w != nil {
				a.walking = true
				ch.walks <- w
			}
		}
	}
}

// tick is one turn of the loop: observe, decide, apply.
func (a *Agent) tick() {
	started := time.Now()
	o, err := a.observe(started)
	if a.trouble("observe", err); err != nil {
		a.decision.Next = a.config.Policy.Calm
		return
	}
	a.lookAround(started, o.Count)
	words := memory{a.machine.Override(), a.machine.Manual()}
	a.decision = a.machine.Tick(o)
	if a.recorder != nil {
		a.trouble("record", a.recorder.record(o, words, a.decision.Posture.Level))
	}
	for _, e := range a.decision.Events {
		a.emit(e)
	}
	a.apply(started)
	a.publish(o, time.Since(started))
}

// observe reads everything that one tick needs. Without the count and the capacity there is nothing
// to decide on; anything else that can't be read stays as it was, and is told of.
func (a *Agent) observe(now time.Time) (policy.Observation, error) {
	o := policy.Observation{Time: now, Host: a.facts.Host, Adopted: a.adopted,
		Kernel: a.last.Kernel, Arrivals: a.last.Arrivals, Sockets: a.last.Sockets, Work: a.last.Work}
	var err error
	if o.Count, err = a.table.Count(); err != nil {
		return o, err
	}
	if o.Capacity, err = a.capacity(); err != nil {
		return o, err
	}
	var errs [4]error
	errs[0] = update(&o.Kernel, a.table.Counters)
	errs[1] = update(&o.Arrivals, a.stack.Arrivals)
	errs[2] = update(&o.Sockets, a.stack.Sockets)
	errs[3] = update(&o.Work, a.actuator.work)
	a.trouble("counters", errors.Join(errs[:]...))
	o.Work.Retimed = a.retimed
	if a.fresh {
		o.Census, a.fresh = a.census, false
	}
	a.last = o
	return o, nil
}

// update replaces a value by a newer one, if that can be read.
func update[T any](value *T, read func() (T, error)) error {
	newer, err := read()
	if err == nil {
		*value = newer
	}
	return err
}

// unbounded is the capacity where nf_conntrack_max is 0, which means no bound to the kernel.
const unbounded = math.MaxInt32

// capacity returns how many entries this namespace may use.
func (a *Agent) capacity() (int, error) {
	most, err := a.table.Max()
	if most == 0 {
		most = unbounded
	}
	if c := a.config.Capacity; c > 0 {
		most = min(most, c)
	}
	return most, err
}

// apply brings the kernel to the posture.
func (a *Agent) apply(now time.Time) {
	desired := nft.Desired{Posture: a.decision.Posture, Allow: a.facts.Allow}
	if ok, err := a.actuator.intact(); err == nil && !ok {
		a.emit(policy.Event{Time: now, Kind: policy.RepairEvent, Reason: "rules of table inet ctguard went missing: made again"})
	}
	a.trouble("note", a.note(untracked(a.decision.Posture)))
	err := a.actuator.rules(desired, now)
	if a.trouble("rules", err); err != nil {
		a.decision.Posture.Caps = sparing(a.decision.Posture.Caps)
	}
	a.slowest = max(a.slowest, time.Since(now))
	// Reading two dozen settings costs more than the rest of the tick: look again each second.
	wanted := a.decision.Posture.Settings
	if maps.Equal(wanted, a.setTo) && now.Sub(a.setAt) < time.Second {
		return
	}
	a.setTo, a.setAt = wanted, now
	changes, err := a.actuator.set(wanted)
	a.trouble("settings", err)
	if len(changes) > 0 {
		a.emit(policy.Event{Time: now, Kind: policy.StepEvent, Reason: "settings: " + summary(changes)})
	}
}

// sparing returns caps that take no assured entry. Block, then evict: while the rules could not be
// written, what a source holds would come back at once.
func sparing(caps []policy.Cap) []policy.Cap {
	caps = slices.Clone(caps)
	for i := range caps {
		caps[i].SpareAssured = true
	}
	return caps
}

// summary lists changes of settings, the first few of them one by one.
func summary(changes []sysctl.Change) string {
	const most = 4
	var list []string
	for _, c := range changes[:min(most, len(changes))] {
		list = append(list, c.String())
	}
	if more := len(changes) - most; more > 0 {
		list = append(list, fmt.Sprintf("and %d more", more))
	}
	return strings.Join(list, ", ")
}

// revert takes every step back: rules before the settings that they depend on.
func (a *Agent) revert() error {
	rules := a.retrack()
	_, err := a.actuator.set(nil)
	if err != nil {
		err = fmt.Errorf("put settings back: %w", err)
	}
	return errors.Join(err, rules)
}

// learn takes what was found out about the host, and reads the settings again: somebody else may
// have changed them.
func (a *Agent) learn(f facts) {
	f.Admin = a.facts.Admin
	a.facts = f
	a.trouble("survey", errors.Join(f.faults...))
	admin, err := a.settings.Admin()
	if a.trouble("read settings", err); err == nil {
		a.facts.Admin = admin
	}
}

// walkLoop carries walks out, one at a time.
func walkLoop(ctx context.Context, walks <-chan walk, walked chan<- func(*Agent)) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case w := <-walks:
			walked <- w(ctx)
		}
	}
}

// surveyLoop looks at the host every few seconds.
func surveyLoop(ctx context.Context, s *surveyor, reload <-chan *surveyor, surveys chan<- facts) error {
	timer := time.NewTicker(surveyPause)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case next := <-reload:
			next.seen = s.seen // who has logged in has not left because of a new configuration
			s = next
		case <-timer.C:
		}
		select {
		case surveys <- s.survey():
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
