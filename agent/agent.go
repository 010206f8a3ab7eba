package agent

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"ctguard/agent/conntrack"
	"ctguard/agent/survey"
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
	facts facts
	last  policy.Observation
	walks
	decision policy.Decision
	noted    []policy.Selector // what is on disk as living untracked
	setTo    map[string]int    // the settings last wanted
	setAt    time.Time         // when they were last looked at
	slowest  time.Duration     // the longest from an observation to its rules in the kernel
	lonely   lonely
	events   history
	troubles map[string]string
	due      bool // an operator changed something: tick at once
}

// stack is what the loop reads of the protocol stack; *survey.Host is one.
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
		asks: make(chan func(*Agent)), changed: make(chan struct{}), troubles: make(map[string]string)}
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
	here := survey.New(o.Root)
	a.release = append(a.release, here.Close)
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

// revert takes every step back: rules before the settings that they depend on.
func (a *Agent) revert() error {
	rules := a.retrack()
	_, err := a.actuator.set(nil)
	if err != nil {
		err = fmt.Errorf("put settings back: %w", err)
	}
	return errors.Join(err, rules)
}
