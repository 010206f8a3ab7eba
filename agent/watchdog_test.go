package agent

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"ctguard/agent/config"
	"ctguard/agent/conntrack"
	"ctguard/agent/survey"
	"ctguard/agent/sysctl"
	"ctguard/nft"
	"ctguard/policy"
)

// stuck is a call that hangs until the test ends, from the moment that it is armed.
type stuck struct {
	mu      sync.Mutex
	armed   bool
	reached chan struct{}
	release chan struct{}
}

func newStuck(t *testing.T) *stuck {
	s := &stuck{reached: make(chan struct{}), release: make(chan struct{})}
	t.Cleanup(func() { close(s.release) })
	return s
}

func (s *stuck) arm() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.armed = true
}

// call hangs if it is armed.
func (s *stuck) call() {
	s.mu.Lock()
	armed := s.armed
	s.armed = false
	s.mu.Unlock()
	if armed {
		close(s.reached)
		<-s.release
	}
}

// Each part of the kernel, and one that hangs.
type (
	stuckRules struct {
		fakeRules
		*stuck
	}
	stuckSettings struct {
		fakeSettings
		*stuck
	}
	stuckTable struct {
		*kernel
		*stuck
	}
)

func (s stuckRules) Apply(d nft.Desired, now time.Time) error {
	s.call()
	return s.fakeRules.Apply(d, now)
}

func (s stuckSettings) Apply(wanted map[string]int) ([]sysctl.Change, error) {
	s.call()
	return s.fakeSettings.Apply(wanted)
}

func (s stuckTable) Counters() (policy.KernelCounters, error) {
	s.call()
	return s.kernel.Counters()
}

// guarded is an agent of a fake kernel whose watchdog looks when the test says so.
type guarded struct {
	*Agent
	kernel *kernel
	looks  chan time.Time
	where  chan string // what the watchdog says at the end
	gaveUp chan struct{}
	ready  chan struct{}
	alive  chan struct{}
	ended  chan error
}

func newGuarded(t *testing.T) *guarded {
	k := newKernel(t)
	k.count = 950
	c := parse(t, "")
	c.Socket, c.StateDir = filepath.Join(t.TempDir(), "s"), t.TempDir()
	g := &guarded{newAgent(k, c, false), k, make(chan time.Time), make(chan string, 1), make(chan struct{}),
		make(chan struct{}), make(chan struct{}, 1), make(chan error, 1)}
	g.loop.ready = func() { close(g.ready) }
	g.loop.alive = func() {
		select {
		case g.alive <- struct{}{}:
		default:
		}
	}
	g.loop.watchdog = newWatchdog(func(where string) { g.where <- where }, func() { close(g.gaveUp) })
	g.loop.watchdog.looks = g.looks
	return g
}

// start runs the agent until the test ends or stop is called.
func (g *guarded) start(t *testing.T, hup <-chan os.Signal) (stop context.CancelFunc) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	go func() { g.ended <- g.Run(ctx, hup) }()
	<-g.ready
	return cancel
}

// stall looks until the watchdog ends the process, and returns how often and what it said.
func (g *guarded) stall(t *testing.T) (looks int, where string) {
	t.Helper()
	timeout := time.After(10 * time.Second)
	for {
		select {
		case g.looks <- time.Now():
			looks++
		case where = <-g.where:
			return looks, where
		case <-timeout:
			t.Fatal("the watchdog does not end the process")
		}
	}
}

// Whatever the loop hangs in, the process ends, the rules go before, and the place is told.
func TestStalledLoopEnds(t *testing.T) {
	for name, c := range map[string]struct {
		put  func(g *guarded, s *stuck)
		want string
	}{
		"rules": {func(g *guarded, s *stuck) { g.loop.actuator.(*live).ruleset = stuckRules{fakeRules{g.kernel}, s} },
			"stuckRules.Apply"},
		"journal": {func(g *guarded, s *stuck) {
			g.loop.actuator.(*live).settings = stuckSettings{fakeSettings{g.kernel}, s}
		}, "stuckSettings.Apply"},
		"sensors": {func(g *guarded, s *stuck) { g.loop.sensors.table = stuckTable{g.kernel, s} }, "stuckTable.Counters"},
		"log":     {func(g *guarded, s *stuck) { g.loop.alive = s.call }, "(*stuck).call"},
	} {
		t.Run(name, func(t *testing.T) {
			g, s := newGuarded(t), newStuck(t)
			c.put(g, s)
			g.start(t, nil)
			s.arm()
			<-s.reached
			looks, where := g.stall(t)
			if least := int(patience / lookPause); looks < least-1 {
				t.Errorf("ended after %d looks, want %d", looks, least)
			}
			if !strings.Contains(where, c.want) || !strings.Contains(where, "agent.(*loop).") || strings.Contains(where, "\n") {
				t.Errorf("hangs %q, want one line with %s", where, c.want)
			}
			<-g.gaveUp
		})
	}
}

// Where the rules can't be given up either, the process ends all the same, and the place is told.
func TestStalledSocket(t *testing.T) {
	g, s := newGuarded(t), newStuck(t)
	g.loop.alive = s.call
	g.loop.watchdog.letGo, g.loop.watchdog.letGoFor = func() { <-s.release }, 500*time.Millisecond
	g.start(t, nil)
	s.arm()
	<-s.reached
	if _, where := g.stall(t); !strings.Contains(where, "(*stuck).call") {
		t.Errorf("hangs %q", where)
	}
}

// A survey that hangs neither keeps the loop from its work nor from taking everything back.
func TestFrozenSurvey(t *testing.T) {
	g := newGuarded(t)
	root := t.TempDir()
	ports := filepath.Join(root, "proc/sys/net/ipv4/ip_local_port_range")
	if err := errors.Join(os.MkdirAll(filepath.Dir(ports), 0o755),
		os.WriteFile(ports, []byte("32768 60999\n"), 0o600)); err != nil {
		t.Fatal(err)
	}
	g.loop.config = configFile(t, g.loop.config)
	g.surveyor = survey.NewSurveyor(survey.New(root), g.loop.config, nil)
	hup := make(chan os.Signal)
	stop := g.start(t, hup)
	if err := errors.Join(os.Remove(ports), syscall.Mkfifo(ports, 0o600)); err != nil {
		t.Fatal(err)
	}
	hup <- syscall.SIGHUP                        // it looks at once
	w, err := os.OpenFile(ports, os.O_WRONLY, 0) // returns when the survey reads, which never ends
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	for range 3 * patience / lookPause {
		g.looks <- time.Now()
		<-g.alive
		<-g.alive
	}
	stop()
	if err := <-g.ended; err != nil {
		t.Errorf("the end: %v", err)
	}
	if g.kernel.desired.Posture.HasRules() || len(g.kernel.settings) > 0 {
		t.Errorf("left behind: %+v and %v", g.kernel.desired.Posture, g.kernel.settings)
	}
}

// configFile gives a configuration a file to be read again from.
func configFile(t *testing.T, c config.Config) config.Config {
	t.Helper()
	c.Path = filepath.Join(t.TempDir(), "ctguard.toml")
	text := "socket = '" + c.Socket + "'\nstate_dir = '" + c.StateDir + "'\n"
	if err := os.WriteFile(c.Path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return c
}

// A walk that hangs keeps the agent from stopping: then the process ends without.
func TestStalledStop(t *testing.T) {
	g, s := newGuarded(t), newStuck(t)
	g.walker.scanner = stuckScanner{g.kernel, s}
	s.arm()
	stop := g.start(t, nil)
	<-s.reached
	stop()
	for strings.Contains(hanging(), "agent.(*loop).") { // the loop ends by itself
		time.Sleep(time.Millisecond)
	}
	if _, where := g.stall(t); !strings.Contains(where, "stuckScanner.Scan") {
		t.Errorf("hangs %q", where)
	}
}

// A loop that can't see ends, so that its rules don't stay for ever; nobody is told that it lives meanwhile.
func TestBlindLoopEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKernel(t)
		l := newAgent(k, parse(t, ""), false).loop
		alive := 0
		l.alive = func() { alive++ }
		if err := l.turn(); err != nil || alive != 1 {
			t.Fatalf("error %v, alive %d times", err, alive)
		}
		k.faults["count"] = errors.New("gone")
		began := time.Now()
		for {
			err := l.turn()
			if errors.Is(err, errBlind) {
				break
			}
			if err != nil || time.Since(began) > time.Hour {
				t.Fatalf("after %s: %v", time.Since(began), err)
			}
			time.Sleep(l.decision.Next)
		}
		if took := time.Since(began); took < blindFor || took > 2*blindFor {
			t.Errorf("ended after %s, want %s", took, blindFor)
		}
		if alive != 1 {
			t.Errorf("told to live while blind, %d times", alive-1)
		}
	})
}

// stuckScanner is a scan that hangs.
type stuckScanner struct {
	*kernel
	*stuck
}

func (s stuckScanner) Scan(ctx context.Context, o conntrack.ScanOptions) (*policy.Census, error) {
	s.call()
	return s.kernel.Scan(ctx, o)
}
