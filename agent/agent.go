package agent

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"golang.org/x/time/rate"

	"ctguard/agent/config"
	"ctguard/agent/conntrack"
	"ctguard/agent/control"
	"ctguard/agent/notify"
	"ctguard/agent/record"
	"ctguard/agent/state"
	"ctguard/agent/survey"
	"ctguard/agent/sysctl"
	"ctguard/nft"
	"ctguard/policy"
)

// Version is ctguard's version; the build sets it.
var Version = "dev"

// Agent guards the conntrack table of one network namespace. It starts the goroutines and hands each what it
// owns; while [Agent.Run] runs it touches none of it.
type Agent struct {
	loop     *loop
	walker   walker
	surveyor *survey.Surveyor
	board    *control.Board
	control  control.Options
	opened   opened
	// tryOut begins to try out what needs privileges that are given up then, and returns what waits for it; nil in tests
	tryOut func() (wait func() func(*loop))
}

// opened is what was opened, to be closed in reverse order.
type opened []io.Closer

// add notes something to be closed.
func (o *opened) add(c io.Closer) { *o = append(*o, c) }

// close closes everything, once.
func (o *opened) close() error {
	var errs []error
	for i := len(*o) - 1; i >= 0; i-- {
		errs = append(errs, (*o)[i].Close())
	}
	*o = nil
	return errors.Join(errs...)
}

// Options are what the command line adds to the configuration.
type Options struct {
	DryRun bool
	Record string // file to write observations and decisions to; empty for none
	Root   string // "/" except in tests: where /proc, /etc, /sys and /run are found
	Log    *slog.Logger
	Ready  func() // called once the agent guards the table
	Alive  func() // called after each tick that observed, decided and applied; it must not wait for anybody
	// Stalled must end the process at once: the loop hangs, and where says where. The rules are gone already, as far as
	// they can be. Without it nobody watches the loop.
	Stalled func(where string)
	// Calm is told at each tick whether nothing is untracked or dropped, nor about to be: then there is little to do.
	Calm func(calm bool)
}

// New opens everything the agent needs in the network namespace of the calling thread, and puts
// back what an earlier process left behind. Nothing else is changed before [Agent.Run].
func New(c config.Config, o Options) (*Agent, error) {
	board := control.NewBoard()
	a := &Agent{board: board, control: control.Options{Socket: c.Socket, Group: c.Group,
		Metrics: c.Metrics, Details: c.Details}}
	a.loop = newLoop(c, o, board)
	if err := a.open(o); err != nil {
		return nil, errors.Join(err, a.opened.close())
	}
	return a, nil
}

// newLoop returns a loop that has not learnt anything yet.
func newLoop(c config.Config, o Options, board *control.Board) *loop {
	return &loop{config: c, dryRun: o.DryRun, ready: o.Ready, alive: o.Alive, calm: func(bool) {},
		machine: policy.New(c.Policy),
		teller: teller{log: o.Log, board: board, troubles: make(map[string]string),
			notifier: notify.New(c.Notify, c.Namespace.String(), o.Log, board.Noticed)}}
}

// open does the work of New.
func (a *Agent) open(o Options) error {
	if err := checkPrivileges(); err != nil {
		return err
	}
	l := a.loop
	if err := a.lock(); err != nil {
		return err
	}
	kernel, err := a.findOut(o)
	if err != nil {
		return err
	}
	rules, err := nft.Open(kernel.Rules...)
	if err != nil {
		return err
	}
	a.opened.add(rules)
	if o.Stalled != nil {
		l.watchdog = newWatchdog(o.Stalled, rules.LetGo)
	}
	if l.settings, err = a.openSettings(o); err != nil {
		return err
	}
	table, err := conntrack.Open()
	if err != nil {
		return err
	}
	a.opened.add(table)
	here := survey.New(o.Root)
	a.opened.add(here)
	l.calm = func(calm bool) {
		here.Calm(calm)
		if o.Calm != nil {
			o.Calm(calm)
		}
	}
	l.sensors = sensors{table: table, stack: here}
	if o.DryRun {
		l.actuator, a.walker = &dry{settings: l.settings}, walker{table, &dryEntries{}}
	} else {
		live := newLive(rules, l.settings, table, here.Established)
		l.actuator, a.walker = live, walker{table, live}
	}
	l.adoptOrphans(a.walker)
	l.namespace.others = here.OtherNamespaces
	a.surveyor = survey.NewSurveyor(here, l.config, kernel.Lacking)
	logins, err := l.state.Logins(time.Now())
	l.trouble("logins", err)
	a.surveyor.RecallLogins(logins)
	a.surveyor.KeepForwarded(kernel.Tracked)
	a.surveyor.KeepUnproxied(kernel.Unproxied)
	a.surveyor.CountElsewhere(elsewhere(table))
	l.recallDay()
	if o.Record != "" {
		l.recorder, err = record.New(o.Record, Version, l.config.Policy, *l.machine.OrdinaryDay())
		if err != nil {
			return err
		}
		a.opened.add(l.recorder)
	}
	l.restore()
	return nil
}

// lock makes sure that nobody else guards this network namespace.
func (a *Agent) lock() error {
	lock, err := state.LockInstance()
	if errors.Is(err, state.ErrRunning) {
		return err
	}
	if err != nil {
		a.loop.trouble("instance lock", fmt.Errorf("%w: a second ctguard here would go unnoticed", err))
		return nil
	}
	a.opened.add(lock)
	return nil
}

// openSettings opens the state directory and the settings, and puts back what an earlier process did not. A
// dry run has no state directory and leaves everything as it is.
func (a *Agent) openSettings(o Options) (*sysctl.Keeper, error) {
	l, proc := a.loop, o.Root+"/proc"
	if o.DryRun {
		return sysctl.NewKeeper(proc, "")
	}
	l.state = state.At(l.config.StateDir)
	lock, err := l.state.Lock()
	if err != nil {
		return nil, err
	}
	a.opened.add(lock)
	settings, err := sysctl.NewKeeper(proc, l.config.StateDir)
	if errors.Is(err, sysctl.ErrDamaged) {
		// A host without a guard is worse than a setting that stays as it is.
		var aside string
		if aside, err = sysctl.SetAside(l.config.StateDir); err == nil {
			l.emit(policy.Event{Kind: policy.DegradedEvent, Reason: "the journal of an earlier run is damaged: " +
				"set aside as " + aside + "; settings it had changed stay as they are"})
			settings, err = sysctl.NewKeeper(proc, l.config.StateDir)
		}
	}
	if err != nil {
		return nil, err
	}
	changes, err := settings.Revert()
	if len(changes) > 0 {
		l.emit(policy.Event{Kind: policy.RepairEvent, Reason: "left by an earlier run: " + summary(changes)})
	}
	if err != nil {
		return nil, err
	}
	removed, err := nft.Revert()
	if removed {
		l.emit(policy.Event{Kind: policy.RepairEvent, Reason: "left by an earlier run: table inet " + nft.Name + " removed"})
	}
	return settings, err
}

// newLive returns what changes the kernel, within the bounds of what an agent does to entries.
func newLive(rules ruleset, settings keeper, table entries, connections connections) *live {
	return &live{ruleset: rules, settings: settings, entries: table, connections: connections,
		evicting: rate.NewLimiter(evictionsPerSecond, evictionsPerSecond),
		retiming: rate.NewLimiter(retimesPerSecond, retimesPerSecond),
		adopting: rate.NewLimiter(adoptionsPerSecond, adoptionsPerSecond)}
}

// surveyPause is how often the agent looks at the host it runs on, changePause how often at most it asks whether rules
// changed. Where looking takes long, as with hundreds of thousands of sockets, it rests so many times as long, up to
// surveyRest.
const (
	surveyPause = 5 * time.Second
	surveyShare = 250
	surveyRest  = 15 * time.Second
	changePause = 500 * time.Millisecond
)
