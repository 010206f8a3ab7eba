package agent

import (
	"context"
	"log/slog"
	"maps"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/time/rate"

	"ctguard/agent/config"
	"ctguard/agent/conntrack"
	"ctguard/agent/control"
	"ctguard/agent/state"
	"ctguard/agent/survey"
	"ctguard/agent/sysctl"
	"ctguard/nft"
	"ctguard/policy"
)

// kernel is a fake of everything that the loop reads and changes.
type kernel struct {
	testing.TB
	readOnly bool // every change fails the test

	mu        sync.Mutex
	count     int
	max       int
	drops     uint64
	census    *policy.Census
	faults    map[string]error // by the call that fails
	admin     map[string]int
	settings  map[string]int // what ctguard wants of them
	desired   nft.Desired
	missing   bool // somebody flushed the ruleset
	applied   int
	evictions []conntrack.Eviction
	evicted   int // what each eviction answers
	retimings []map[string]int
	retired   []conntrack.Retirement
	live      []survey.Live
	adopted   []conntrack.Flow
	purged    []policy.Purge
	scans     int
}

func newKernel(tb testing.TB) *kernel {
	return &kernel{TB: tb, max: 1000, faults: make(map[string]error),
		admin: map[string]int{"nf_conntrack_tcp_loose": 1, "nf_conntrack_tcp_be_liberal": 0,
			"nf_conntrack_udp_timeout": 30, "nf_conntrack_tcp_timeout_time_wait": 120}}
}

// change is called by whatever changes the kernel.
func (k *kernel) change(what string) error {
	if k.readOnly {
		k.Errorf("%s was called", what)
	}
	return k.faults[what]
}

// The table.
func (k *kernel) Count() (int, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.count, k.faults["count"]
}

func (k *kernel) Max() (int, error) { return k.max, k.faults["max"] }

func (k *kernel) Counters() (policy.KernelCounters, error) {
	return policy.KernelCounters{Drop: k.drops}, k.faults["counters"]
}

func (k *kernel) Scan(context.Context, conntrack.ScanOptions) (*policy.Census, error) {
	k.scans++
	if err := k.faults["scan"]; err != nil {
		return nil, err
	}
	census := policy.Census{Whole: true}
	if k.census != nil {
		census = *k.census
	}
	census.Time = time.Now()
	return &census, nil
}

func (k *kernel) Evict(_ context.Context, e conntrack.Eviction) (int, error) {
	k.evictions = append(k.evictions, e)
	if b := e.Besides; b != nil && b.Retire != nil {
		k.retired, b.Retired = append(k.retired, *b.Retire), 1
	}
	if b := e.Besides; b != nil && b.Retime != nil {
		k.retimings, b.Retimed = append(k.retimings, b.Retime.Timeouts), 1
	}
	return k.evicted, k.change("evict")
}

func (k *kernel) Retime(_ context.Context, r conntrack.Retiming) (int, error) {
	k.retimings = append(k.retimings, r.Timeouts)
	return 1, k.change("retime")
}

func (k *kernel) Adopt(_ context.Context, flows []conntrack.Flow, _ *rate.Limiter) (int, error) {
	k.adopted = append(k.adopted, flows...)
	return len(flows), k.change("adopt")
}

func (k *kernel) AdoptForwarded(_ context.Context, flows []conntrack.ForwardedFlow, _ *rate.Limiter) (int, error) {
	return len(flows), k.change("adopt forwarded")
}

func (k *kernel) Loosen(context.Context, []netip.AddrPort, *rate.Limiter) (int, error) {
	return 0, k.change("loosen")
}

func (k *kernel) Purge(_ context.Context, class policy.Purge, _ conntrack.Parties, _ *rate.Limiter) (int, error) {
	k.purged = append(k.purged, class)
	return 1, k.change("purge")
}

func (k *kernel) Retire(_ context.Context, r conntrack.Retirement) (int, error) {
	k.retired = append(k.retired, r)
	return 1, k.change("retire")
}

// established are the connections that there are.
func (k *kernel) established(map[uint16]bool, int) ([]survey.Live, error) {
	return k.live, k.faults["connections"]
}

// The stack.
func (k *kernel) Arrivals() (policy.Arrivals, error) { return policy.Arrivals{}, k.faults["arrivals"] }
func (k *kernel) Sockets() (int, error)              { return 0, k.faults["sockets"] }

// fakeRules is the ruleset.
type fakeRules struct{ *kernel }

func (f fakeRules) Apply(d nft.Desired, _ time.Time) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.desired, f.missing = d, false
	f.applied++
	return f.change("rules")
}
func (f fakeRules) Work() (policy.Work, error) {
	return policy.Work{}, f.faults["work"]
}
func (f fakeRules) Ending(nft.Desired) (map[policy.Selector][]netip.AddrPort, error) {
	return nil, nil
}
func (fakeRules) Foreign() uint64 { return 0 }

func (f fakeRules) Intact() (bool, error) {
	return !f.missing, f.faults["intact"]
}

// fakeSettings are the settings.
type fakeSettings struct{ *kernel }

func (f fakeSettings) Apply(wanted map[string]int) ([]sysctl.Change, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var changes []sysctl.Change
	for name, to := range wanted {
		from, ours := f.settings[name]
		if !ours {
			from = f.admin[name]
		}
		if from != to {
			changes = append(changes, sysctl.Change{Name: name, From: from, To: to})
		}
	}
	f.settings = maps.Clone(wanted)
	return changes, f.change("settings")
}
func (f fakeSettings) Admin() (map[string]int, error) { return maps.Clone(f.admin), f.faults["admin"] }

// newAgent returns an agent of a fake kernel that has learnt about its host.
func newAgent(k *kernel, c config.Config, dryRun bool) *Agent {
	board := control.NewBoard()
	a := &Agent{board: board, control: control.Options{Socket: c.Socket, Group: c.Group, Metrics: c.Metrics},
		surveyor: survey.NewSurveyor(survey.New("/"), c, nil),
		loop:     newLoop(c, Options{DryRun: dryRun, Log: slog.New(slog.DiscardHandler)}, board)}
	l := a.loop
	l.sensors, l.settings = sensors{k, k}, fakeSettings{k}
	if dryRun {
		l.actuator, a.walker = &dry{settings: l.settings}, walker{k, &dryEntries{}}
	} else {
		live := newLive(fakeRules{k}, l.settings, k, k.established)
		live.evicting, live.retiming = rate.NewLimiter(rate.Inf, 1), rate.NewLimiter(rate.Inf, 1)
		l.actuator, a.walker, l.state = live, walker{k, live}, state.At(stateDir(k, c))
	}
	l.namespace.others = func() int { return 0 }
	l.machine.Recall(policy.OrdinaryDay{Updated: time.Now(), Flows: true})
	l.learn(survey.Facts{Host: policy.Host{Services: []policy.Selector{{Protocol: policy.TCP, Port: 80}}}})
	return a
}

// stateDir is where an agent keeps its state: never where one of this machine would.
func stateDir(t testing.TB, c config.Config) string {
	if c.StateDir == "/var/lib/ctguard" {
		return t.TempDir()
	}
	return c.StateDir
}

// comparePrefixes lets cmp compare addresses.
var comparePrefixes = cmpopts.EquateComparable(netip.Prefix{}, netip.AddrPort{})

// parse reads a configuration that must be fine.
func parse(t *testing.T, text string) config.Config {
	t.Helper()
	c, err := config.Parse("test.toml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// turn is one tick and the walks that are due after it, one at a time, as the loop does them.
func (a *Agent) turn() {
	a.loop.tick()
	for range 5 {
		w := a.loop.nextWalk(time.Now())
		if w == nil {
			return
		}
		w.do(context.Background(), a.walker)(a.loop)
	}
}

// reasons are the reasons of all events of a kind.
func (l *loop) reasons(kind policy.EventKind) []string {
	var list []string
	for _, e := range l.board.Recent(1000) {
		if e.Kind == kind {
			list = append(list, e.Reason)
		}
	}
	return list
}

// told returns how many events of a kind have a text in their reason.
func (l *loop) told(kind policy.EventKind, text string) int {
	n := 0
	for _, reason := range l.reasons(kind) {
		if strings.Contains(reason, text) {
			n++
		}
	}
	return n
}
