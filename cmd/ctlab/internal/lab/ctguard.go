package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/BurntSushi/toml"

	"ctguard/agent/control"
)

const (
	socketName    = "ctguard.sock"
	pollTimeout   = 2 * time.Second
	pollEvery     = 250 * time.Millisecond
	startPatience = 10 * time.Second
	stopPatience  = 15 * time.Second
)

// ctguard is the agent itself, run as a child in the protected namespace.
type ctguard struct {
	path   string
	args   []string
	extra  []string // TOML, merged in this order
	config string
	client *control.Client
	cmd    *exec.Cmd
	exited chan struct{}

	current atomic.Int64
	polls   context.CancelFunc
	polling sync.WaitGroup
	mu      sync.Mutex
	last    agentStatus
	took    float64
	spent   Cost // of those that a restart ended
}

// agentStatus is what the lab reads of the agent's status.
type agentStatus struct {
	Level int64  `json:"level"`
	Mode  string `json:"mode"`
	Steps []struct {
		Name    string `json:"name"`
		Skipped string `json:"skipped"`
	} `json:"steps"`
	Selectors []struct {
		Selector string `json:"selector"`
		Stage    string `json:"stage"`
	} `json:"selectors"`
	Limited []struct {
		Prefix string `json:"prefix"`
	} `json:"limited"`
	Events []any `json:"events"`
}

func newCTGuard(variant string) func(Scenario) guard {
	return func(sc Scenario) guard {
		g := &ctguard{path: sc.CTGuard, args: sc.ExtraArgs, extra: []string{variant, sc.ConfigExtra}}
		g.current.Store(-1)
		return g
	}
}

func (g *ctguard) start(ctx context.Context, r *run) error {
	if _, err := os.Stat(g.path); err != nil {
		return fmt.Errorf("find the ctguard binary: %w", err)
	}
	if err := g.writeConfig(r); err != nil {
		return err
	}
	log, err := os.OpenFile(filepath.Join(r.dir, "ctguard.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }() // the child has its own
	g.cmd = exec.Command(g.path, append([]string{"run", "--config", g.config}, g.args...)...)
	g.cmd.Stdout, g.cmd.Stderr = log, log
	if err := r.site.protected.Start(g.cmd); err != nil {
		return fmt.Errorf("start ctguard: %w", err)
	}
	g.exited = make(chan struct{})
	go func() {
		_ = g.cmd.Wait() // an early end shows in the status
		close(g.exited)
	}()
	g.client = control.NewClient(filepath.Join(r.dir, socketName))
	if err := g.awaitStatus(ctx, r); err != nil {
		return errors.Join(err, g.stop(r))
	}
	pollCtx, cancel := context.WithCancel(ctx)
	g.polls = cancel
	g.polling.Go(func() { g.poll(pollCtx) })
	return nil
}

// writeConfig merges what the lab needs over what was asked for.
func (g *ctguard) writeConfig(r *run) error {
	conf := map[string]any{}
	for _, text := range g.extra {
		var more map[string]any
		if _, err := toml.Decode(text, &more); err != nil {
			return fmt.Errorf("read extra configuration: %w", err)
		}
		merge(conf, more)
	}
	merge(conf, r.site.config)
	merge(conf, map[string]any{
		"socket":    filepath.Join(r.dir, socketName),
		"state_dir": filepath.Join(r.dir, "state"),
		"table":     map[string]any{"capacity": r.sc.Capacity},
	})
	var buf bytes.Buffer
	if err := toml.NewEncoder(&buf).Encode(conf); err != nil {
		return fmt.Errorf("write configuration: %w", err)
	}
	g.config = filepath.Join(r.dir, "ctguard.toml")
	return os.WriteFile(g.config, buf.Bytes(), 0o600)
}

func merge(into, from map[string]any) {
	for k, v := range from {
		sub, ok := v.(map[string]any)
		if have, has := into[k].(map[string]any); ok && has {
			merge(have, sub)
			continue
		}
		into[k] = v
	}
}

// awaitStatus asks for the status until the agent answers.
func (g *ctguard) awaitStatus(ctx context.Context, r *run) error {
	return g.await(ctx, r, startPatience, func(agentStatus) bool { return true })
}

// await asks for the status until it is as it should be.
func (g *ctguard) await(ctx context.Context, r *run, patience time.Duration, good func(agentStatus) bool) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		err := g.ask(ctx)
		if err == nil && good(g.status()) {
			return nil
		}
		select {
		case <-g.exited:
			return fmt.Errorf("ctguard ended: %s", g.log(r))
		case <-ctx.Done():
			return fmt.Errorf("ctguard does not answer, or not as it should: %w: %s", errors.Join(err, ctx.Err()), g.log(r))
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// operate runs a command of the operator's.
func (g *ctguard) operate(ctx context.Context, args ...string) error {
	out, err := exec.CommandContext(ctx, g.path, append([]string{"--config", g.config}, args...)...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("ctguard %s: %w: %s", strings.Join(args, " "), err, bytes.TrimSpace(out))
	}
	return nil
}

func (g *ctguard) poll(ctx context.Context) {
	t := time.NewTicker(pollEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		_ = g.ask(ctx) // a missed poll leaves the last level standing
	}
}

// ask reads the status from the agent's socket. A socket has a path, not a
// namespace, so this works from here and costs no process.
func (g *ctguard) ask(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, pollTimeout)
	defer cancel()
	var st agentStatus
	if err := g.client.Call(ctx, "status", nil, &st); err != nil {
		return fmt.Errorf("read status: %w", err)
	}
	if err := ctx.Err(); err != nil {
		return err // a call that is cancelled is no error
	}
	g.current.Store(st.Level)
	g.mu.Lock()
	defer g.mu.Unlock()
	g.last = st
	return nil
}

func (g *ctguard) level() int { return int(g.current.Load()) }

// status is the last status that was read.
func (g *ctguard) status() agentStatus {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.last
}

func (g *ctguard) log(r *run) string {
	b, err := os.ReadFile(filepath.Join(r.dir, "ctguard.log"))
	if err != nil {
		return err.Error()
	}
	return string(bytes.TrimSpace(b[max(0, len(b)-2000):]))
}

func (g *ctguard) cost() Cost {
	if g.cmd == nil || g.cmd.Process == nil {
		return Cost{} // it was not started yet
	}
	c := processCost(g.cmd.Process.Pid)
	return Cost{CPUSeconds: g.spent.CPUSeconds + c.CPUSeconds, PeakRSSKiB: max(g.spent.PeakRSSKiB, c.PeakRSSKiB)}
}

// restart stops the agent as a service manager does, and starts it anew.
func (g *ctguard) restart(ctx context.Context, r *run) error {
	g.spent = g.cost()
	if err := g.stop(r); err != nil {
		return err
	}
	g.polls = nil
	return g.start(ctx, r)
}

func (g *ctguard) stop(r *run) error {
	if g.polls != nil {
		g.polls()
		g.polling.Wait()
	}
	if g.cmd == nil || g.cmd.Process == nil {
		return nil
	}
	select {
	case <-g.exited:
		return fmt.Errorf("ctguard ended before it was stopped (%v): %s", g.cmd.ProcessState, g.log(r))
	default:
	}
	began := time.Now()
	_ = g.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-g.exited:
		g.took = time.Since(began).Seconds()
		return nil
	case <-time.After(stopPatience):
		_ = g.cmd.Process.Kill()
		<-g.exited
		return fmt.Errorf("ctguard did not stop within %v of SIGTERM", stopPatience)
	}
}
