package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"

	"ctguard/agent/config"
)

// An agent that ends is started again after a pause, twice as long each time it lived no longer than the
// longest.
const (
	firstPause   = time.Second
	longestPause = time.Minute
)

// An agent that starts makes namespaces to try things in, and walks over the hash of the tables of all: of dozens that
// did so at once on two processors, loops hung until their watchdogs ended them, again and again. So only as many start
// at once as there are processors. One that takes longer than patience no longer holds the others up.
var startingAtOnce = max(2, runtime.NumCPU())

const startPatience = 20 * time.Second

// supervisor keeps one agent per namespace running, each a process of its own: a process is in one
// network namespace, and so are its sockets and its rules. All methods run in the goroutine of run.
type supervisor struct {
	// launch starts an agent and returns the pipe that it writes to when it is ready and as long as it lives
	launch    func(config.Namespace) (*os.File, *exec.Cmd, error)
	log       *slog.Logger
	children  []*child
	waiting   []*child    // until fewer others start
	news      chan func() // what those have to tell that wait for agents
	announced bool        // systemd knows that all are ready
	stopping  bool
	silence   time.Duration // see [silence]
	failed    error         // why all must end, or have not ended well
}

// child is one agent and its process.
type child struct {
	namespace config.Namespace
	process   *os.Process // nil while it does not run
	ready     bool        // it guards its table now
	proven    bool        // it did so once: its configuration is right
	due       bool        // a reload to be passed on once it is ready
	started   time.Time
	pause     time.Duration
}

func newSupervisor(log *slog.Logger, launch func(config.Namespace) (*os.File, *exec.Cmd, error)) *supervisor {
	return &supervisor{launch: launch, log: log, news: make(chan func()), silence: silence}
}

// supervise runs the agents of the namespaces until ctx ends.
func supervise(ctx context.Context, hup <-chan os.Signal, namespaces []config.Namespace, arguments []string,
	log *slog.Logger) error {
	s := newSupervisor(log, func(n config.Namespace) (*os.File, *exec.Cmd, error) { return launch(n, arguments) })
	for _, n := range namespaces {
		c := &child{namespace: n}
		s.children = append(s.children, c)
		s.start(c)
	}
	beat := newPulse(ctx).beat
	beats := time.NewTicker(beatPause)
	defer beats.Stop()
	for {
		select {
		case <-ctx.Done():
			return s.stop()
		case <-beats.C:
			beat() // an agent that hangs is ended by itself, or in listen
			s.startWaiting()
		case <-hup:
			for _, c := range s.children {
				s.reload(c)
			}
		case tell := <-s.news:
			if tell(); s.failed != nil {
				return s.stop()
			}
		}
	}
}

// start starts the agent of a namespace as soon as it may. It ends with this process, also by kill -9.
func (s *supervisor) start(c *child) {
	s.waiting = append(s.waiting, c)
	s.startWaiting()
}

// startWaiting starts those agents of which it is the turn.
func (s *supervisor) startWaiting() {
	for len(s.waiting) > 0 && !s.stopping && s.starting() < startingAtOnce {
		c := s.waiting[0]
		s.waiting = s.waiting[1:]
		s.startNow(c)
	}
}

// starting counts the agents that were started a moment ago and are not ready yet.
func (s *supervisor) starting() (n int) {
	for _, c := range s.children {
		if c.process != nil && !c.ready && time.Since(c.started) < startPatience {
			n++
		}
	}
	return n
}

func (s *supervisor) startNow(c *child) {
	c.started = time.Now()
	r, process, err := s.launch(c.namespace)
	if err != nil {
		s.again(c, err)
		return
	}
	c.process = process.Process
	go func() {
		s.listen(c, r, process.Process)
		err := process.Wait()
		s.news <- func() { s.ended(c, err) }
	}()
}

// silence is how long an agent that is ready may say nothing: it says so each beatPause that it lives.
const silence = 30 * time.Second

// listen waits for an agent to be ready, and then to end. One that is silent for long hangs so badly that it can't
// end by itself, or was stopped: it is killed, and with it go its rules.
func (s *supervisor) listen(c *child, r *os.File, process *os.Process) {
	defer r.Close()
	some := make([]byte, 64)
	if n, _ := r.Read(some); n == 0 {
		return
	}
	s.news <- func() { s.settle(c) }
	for {
		_ = r.SetReadDeadline(time.Now().Add(s.silence))
		_, err := r.Read(some)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			s.news <- func() {
				s.log.Warn("agent is silent, it is killed", "namespace", c.namespace.String(), "for", s.silence.String())
			}
			_ = process.Kill()
			return
		}
		if err != nil {
			return
		}
	}
}

// launch starts the agent of a namespace with arguments, for [supervisor].
func launch(n config.Namespace, arguments []string) (*os.File, *exec.Cmd, error) {
	program, err := os.Executable()
	if err != nil {
		return nil, nil, err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, nil, err
	}
	defer w.Close()
	c := exec.Command(program, append([]string{"run", "--netns", n.String()}, arguments...)...)
	c.Stderr = os.Stderr
	c.ExtraFiles = []*os.File{w} // descriptor 3
	c.Env = append(os.Environ(), readyVariable+"=3")
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGTERM}
	if err := c.Start(); err != nil {
		r.Close()
		return nil, nil, err
	}
	return r, c, nil
}

// settle notes that an agent guards its table, and tells systemd when all do.
func (s *supervisor) settle(c *child) {
	c.ready, c.proven = true, true
	s.log.Info("agent is ready", "namespace", c.namespace.String())
	if s.stopping {
		_ = c.process.Signal(unix.SIGTERM) // one that came before it could be caught is lost
	} else if c.due {
		s.reload(c)
	}
	s.startWaiting()
	for _, other := range s.children {
		if !other.proven {
			return
		}
	}
	if !s.announced {
		s.announced = true
		_, _ = daemon.SdNotify(false, daemon.SdNotifyReady) // no systemd is no fault
	}
}

// reload has an agent read the configuration again. One that is not ready yet may not know the signal.
func (*supervisor) reload(c *child) {
	if c.due = !c.ready; c.ready {
		_ = c.process.Signal(unix.SIGHUP)
	}
}

// ended notes that an agent has ended. It is started again, unless it never ran because something is wrong
// with the configuration, about which it has said what.
func (s *supervisor) ended(c *child, err error) {
	c.process, c.ready = nil, false
	var exit *exec.ExitError
	code := 0
	if errors.As(err, &exit) {
		code = exit.ExitCode()
	}
	switch {
	case s.stopping:
		if code > 0 {
			s.failed = errors.Join(s.failed, fmt.Errorf("agent of namespace %s: %w", c.namespace, err))
		}
	case code == exitUsage && !c.proven:
		s.failed = usage(fmt.Errorf("namespace %s can't be guarded: see above", c.namespace), "")
	default:
		s.again(c, err)
	}
	s.startWaiting()
}

// again starts an agent again after a pause.
func (s *supervisor) again(c *child, err error) {
	c.pause = min(max(firstPause, 2*c.pause), longestPause)
	if time.Since(c.started) > longestPause {
		c.pause = firstPause
	}
	s.log.Warn("agent has ended, it is started again", "namespace", c.namespace.String(), "error", fmt.Sprint(err),
		"pause", c.pause.String())
	time.AfterFunc(c.pause, func() { s.news <- func() { s.start(c) } })
}

// stop ends all agents and waits until they have taken everything back.
func (s *supervisor) stop() error {
	s.stopping = true
	for _, c := range s.children {
		if c.process != nil {
			_ = c.process.Signal(unix.SIGTERM)
		}
	}
	for s.running() {
		(<-s.news)()
	}
	return s.failed
}

// running reports whether any agent still runs.
func (s *supervisor) running() bool {
	for _, c := range s.children {
		if c.process != nil {
			return true
		}
	}
	return false
}
