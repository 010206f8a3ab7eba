package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"ctguard/agent/config"
	"ctguard/agent/control"
	"ctguard/agent/record"
	"ctguard/agent/state"
	"ctguard/agent/survey"
	"ctguard/policy"
)

// loop is everything that decides and what it knows. While the agent runs it belongs to one goroutine; others
// get values from it, never itself.
type loop struct {
	config   config.Config
	dryRun   bool
	machine  *policy.Machine
	sensors  sensors
	actuator actuator
	settings keeper
	state    *state.Dir       // nil in a dry run
	recorder *record.Recorder // nil without a recording
	teller
	walks

	facts     survey.Facts
	last      policy.Observation
	decision  policy.Decision
	wanted    wanted
	slowest   time.Duration // the longest from an observation to its rules in the kernel
	namespace wrongNamespace
	missing   []string  // what this kernel can't do
	slower    []string  // what it lacks and is done in another way
	untried   bool      // what is tried out at the start has not ended
	ready     func()    // called after a tick that went all the way, once all is tried out or that takes too long
	alive     func()    // called after each such tick
	blind     time.Time // since when the table can't be read; zero while it can
	// when the first tick went all the way
	guardsSince time.Time
	watchdog    *watchdog  // nil in tests
	calm        func(bool) // told whether nothing is about to go untracked
	due         bool       // an operator changed something: tick at once
	news        bool       // something besides the table's size is new: a glance is not enough
}

// wanted are the settings last wanted, and when they were last looked at.
type wanted struct {
	settings map[string]int
	at       time.Time
}

// Run guards the table until ctx ends, then takes every step back. hup asks for the configuration
// to be read again.
func (a *Agent) Run(ctx context.Context, hup <-chan os.Signal) error {
	server, err := control.Listen(a.control, a.board)
	if err != nil {
		return errors.Join(err, a.opened.close())
	}
	a.opened.add(server)
	group, ctx := errgroup.WithContext(ctx)
	ch := newChannels(a.board, hup)
	a.loop.learn(a.surveyor.Survey())
	defer a.watch()()
	group.Go(func() error { return a.walker.run(ctx, ch.walks, ch.walked) })
	// A survey that hangs keeps nobody from taking everything back.
	go surveyLoop(ctx, a.surveyor, a.loop.state, ch)
	go func() { _ = a.loop.notifier.Run(ctx) }() // and neither does a notice
	group.Go(func() error { return a.serve(ctx, ch, server) })
	group.Go(func() error { return a.loop.run(ctx, ch) })
	err = group.Wait()
	if errors.Is(err, context.Canceled) {
		err = nil
	}
	// The goroutines that have to do with the loop have ended: it is this one's now.
	a.loop.watchdog.expect(0, partingPatience)
	return errors.Join(err, a.loop.revert(a.walker), a.opened.close())
}

// setOut begins the next walk, unless one is under way. One that does not end is told of: nobody is evicted meanwhile.
func (l *loop) setOut(walks chan<- walk) {
	now := time.Now()
	if l.walking {
		if now.Sub(l.setOutAt) >= longWalk {
			l.trouble("walk", errLongWalk)
		}
		return
	}
	l.trouble("walk", nil)
	if w := l.nextWalk(now); w != nil {
		l.walking, l.setOutAt = true, now
		walks <- w
	}
}

// longWalk is more than any walk over the table takes.
const longWalk = time.Minute

var errLongWalk = fmt.Errorf("the last walk over the table has not ended for %s: nobody is evicted meanwhile", longWalk)

// watch has the watchdog look after the loop until what it returns is called.
func (a *Agent) watch() (stop func()) {
	w := a.loop.watchdog
	if w == nil {
		return func() {}
	}
	ctx, cancel := context.WithCancel(context.Background())
	go w.run(ctx)
	return cancel
}

// channels are how the loop talks to the other goroutines.
type channels struct {
	walks     chan walk
	walked    chan func(*loop)
	tried     chan func(*loop)
	guarding  chan struct{} // closed after the loop's first turn
	surveys   chan survey.Facts
	uneasy    chan struct{} // told after each turn that is not calm
	reload    chan config.Config
	questions <-chan control.Question
	hup       <-chan os.Signal
}

func newChannels(board *control.Board, hup <-chan os.Signal) channels {
	return channels{make(chan walk, 1), make(chan func(*loop), 1), make(chan func(*loop), 1),
		make(chan struct{}), make(chan survey.Facts, 1), make(chan struct{}, 1), make(chan config.Config, 1),
		board.Questions(), hup}
}

// run ticks until ctx ends.
func (l *loop) run(ctx context.Context, ch channels) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	guards := sync.OnceFunc(func() { close(ch.guarding) })
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-timer.C:
			err := l.turn()
			guards()
			if err != nil {
				return err
			}
			if !l.isCalm() {
				select {
				case ch.uneasy <- struct{}{}:
				default: // told already
				}
			}
			timer.Reset(l.decision.Next)
		case learnt := <-ch.walked:
			l.walking = false
			learnt(l)
			if l.fresh || l.due {
				l.due, l.news = false, true
				timer.Reset(0) // who fills the table is news, and so is that all have entries
			}
		case tried := <-ch.tried:
			tried(l)
			timer.Reset(0) // whoever waits for the agent to be ready
		case f := <-ch.surveys:
			l.learn(f)
		case q := <-ch.questions:
			q.Answer(l.answer(q.Request))
			if l.due { // those who only read must not set the pace
				l.due, l.news = false, true
				timer.Reset(0)
			}
		case <-ch.hup:
			l.news = true
			if l.reload() {
				select {
				case <-ch.reload: // an earlier one that nobody has taken yet
				default:
				}
				ch.reload <- l.config
			}
		}
		l.setOut(ch.walks)
	}
}

// errBlind says why a loop that can't see has ended.
var errBlind = errors.New("the table could not be read")

// turn ticks unless a glance is enough, and tells those who watch over the loop of a tick that observed, decided and
// applied. Rules are not left to a loop that has seen nothing for long: it ends, and they go.
func (l *loop) turn() error {
	if l.glance(time.Now()) {
		l.watchdog.expect(l.decision.Next, patience)
		return nil
	}
	l.news = false
	before := l.last
	whole := l.tick()
	if l.stirs(before) {
		l.decision.Next = min(l.decision.Next, l.config.Policy.Pressed)
	}
	l.watchdog.expect(l.decision.Next, patience)
	if !whole {
		if l.blind.IsZero() {
			l.blind = time.Now()
		}
		if time.Since(l.blind) >= blindFor {
			return fmt.Errorf("%w for %s: %s", errBlind, blindFor, l.troubles["observe"])
		}
		return nil
	}
	l.blind = time.Time{}
	l.tellReady(time.Now())
	if l.alive != nil {
		l.alive()
	}
	return nil
}

// trialPatience is how long whoever starts the agent waits for what is tried out: on a machine that is overwhelmed it
// may take minutes, and systemd ends what is not ready in time, which would be a guard at work.
const trialPatience = 20 * time.Second

var errUntried = fmt.Errorf("what this kernel can do is tried for more than %s: "+
	"the machine is overwhelmed, or it hangs", trialPatience)

// tellReady tells whoever waits for it that the agent guards the table, once all is tried out or that takes too long.
func (l *loop) tellReady(now time.Time) {
	if l.guardsSince.IsZero() {
		l.guardsSince = now
	}
	if l.ready == nil || l.untried && now.Sub(l.guardsSince) < trialPatience {
		return
	}
	if l.untried {
		l.trouble("self-test", errUntried)
	}
	l.ready()
	l.ready = nil
}

// surveyLoop looks at the host every few seconds, and at once where its rules change while something is untracked.
func surveyLoop(ctx context.Context, s *survey.Surveyor, d *state.Dir, ch channels) {
	timer := time.NewTicker(surveyPause)
	defer timer.Stop()
	var rest time.Time  // until then the last survey has cost enough
	var asked time.Time // when it was last asked whether rules changed
	for {
		select {
		case <-ctx.Done():
			return
		case c := <-ch.reload:
			s.Reconfigure(c)
		case <-timer.C:
			if time.Now().Before(rest) {
				continue
			}
		case <-ch.uneasy:
			if time.Since(asked) < changePause {
				continue
			}
			if asked = time.Now(); !s.Stale() {
				continue
			}
		}
		began := time.Now()
		facts := s.Survey()
		now := time.Now()
		rest = now.Add(min(surveyShare*now.Sub(began), surveyRest))
		if err := d.KeepLogins(s.Logins(now), now); err != nil {
			facts.Faults = append(facts.Faults, err)
		}
		select {
		case ch.surveys <- facts:
		case <-ctx.Done():
			return
		}
	}
}

// learn takes what was found out about the host, and reads the settings again: somebody else may
// have changed them.
func (l *loop) learn(f survey.Facts) {
	f.Admin = l.facts.Admin
	l.facts = f
	l.trouble("survey", errors.Join(f.Faults...))
	l.readSettings()
}

// readSettings finds out how the administrator has the settings now.
func (l *loop) readSettings() {
	admin, err := l.settings.Admin()
	if l.trouble("read settings", err); err == nil {
		l.facts.Admin = admin
	}
}

// reload reads the configuration file again and says whether it counts now. A faulty one changes nothing and
// is told of.
func (l *loop) reload() bool {
	c, err := l.config.Reload()
	if err != nil {
		l.emit(policy.Event{Kind: policy.ConfigEvent, Reason: "not reloaded, nothing changed: " + err.Error()})
		return false
	}
	l.config = c
	l.machine.Reconfigure(c.Policy)
	l.emit(policy.Event{Kind: policy.ConfigEvent, Reason: "reloaded " + c.Path})
	return true
}

// restore takes the operators' words of an earlier run. Words that can't be read are no reason not to guard
// the table.
func (l *loop) restore() {
	words, err := l.state.Words(time.Now())
	l.trouble("operator's words", err)
	if words.Override != nil {
		l.machine.SetOverride(words.Override)
	}
	for _, word := range words.Words {
		l.machine.Say(word)
	}
}

// revert takes every step back: rules before the settings that they depend on.
func (l *loop) revert(w walker) error {
	rules := l.retrack(w)
	l.trouble("ordinary day", l.state.KeepDayNow(l.machine.OrdinaryDay()))
	_, err := l.actuator.set(nil)
	if err != nil {
		err = fmt.Errorf("put settings back: %w", err)
	}
	return errors.Join(err, rules)
}
