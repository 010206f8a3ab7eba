package guardian

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"

	"ctguard/cmd/ctlab/internal/role"
)

// Role is the name under which Run is registered.
const Role = "guardian"

// lockName is an abstract socket: it exists while a process holds it.
const lockName = "@ctguard-ctlab"

// Setting is a global value that is changed for the run.
type Setting struct {
	Path string `json:"path"`
	Was  string `json:"was"`
	Now  string `json:"now"`
}

// spec is all the guardian has to know; it is complete before anything is changed.
type spec struct {
	Settings []Setting `json:"settings"`
	Dir      string    `json:"dir"`
}

// Guardian is the parent's hold on the guardian process.
type Guardian struct {
	proc     *role.Process
	settings []Setting
}

// starter starts the guardian so that it survives what kills ctlab: a session of its own
// keeps a terminal's Ctrl-C away from it, and there is no parent-death signal.
type starter struct{ lock *os.File }

func (s starter) Start(cmd *exec.Cmd) error {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.ExtraFiles = []*os.File{s.lock}
	return cmd.Start()
}

// Protect takes the lab's lock, starts the guardian, and then changes the settings
// given as path and value. dir is removed at the end. Waiting for another lab to end
// is announced by
// onWait and can be cut short through ctx.
func Protect(ctx context.Context, dir string, want map[string]string, onWait func()) (*Guardian, error) {
	lock, err := acquire(ctx, onWait)
	if err != nil {
		return nil, err
	}
	defer func() { _ = lock.Close() }() // the guardian has its own copy
	sp := spec{Dir: dir}
	for path, value := range want {
		was, err := read(path)
		if err != nil {
			return nil, err
		}
		if was != value {
			sp.Settings = append(sp.Settings, Setting{Path: path, Was: was, Now: value})
		}
	}
	g := &Guardian{settings: sp.Settings}
	if g.proc, err = role.Spawn(starter{lock}, Role, sp); err != nil {
		return nil, err
	}
	for _, s := range sp.Settings {
		if err := os.WriteFile(s.Path, []byte(s.Now), 0); err != nil {
			return nil, errors.Join(fmt.Errorf("set %s to %s: %w", s.Path, s.Now, err), g.Restore())
		}
	}
	return g, nil
}

// Restore has everything put back and waits until it is.
func (g *Guardian) Restore() error {
	if err := g.proc.Finish(); err != nil {
		return err
	}
	// With the guardian its lock is gone: another lab that waited may have taken it, and have changed
	// the same settings to the same values. Then they are its own to put back.
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: lockName, Net: "unix"})
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("take the lab's lock: %w", err)
	}
	defer func() { _ = l.Close() }() // gives the lock back
	for _, s := range g.settings {
		if now, err := read(s.Path); err != nil || now == s.Now {
			return fmt.Errorf("%s is still %s, it was %s before the run", s.Path, s.Now, s.Was)
		}
	}
	return nil
}

// Idle waits until no lab runs on this machine and calls fn before another can begin:
// what fn reads of the machine's settings is their own.
func Idle(ctx context.Context, fn func() error) error {
	lock, err := acquire(ctx, func() {})
	if err != nil {
		return err
	}
	defer func() { _ = lock.Close() }() // gives the lock back
	return fn()
}

// acquire waits for the lock: a second lab connects to the first one's socket and
// reads until that is gone.
func acquire(ctx context.Context, onWait func()) (*os.File, error) {
	addr := &net.UnixAddr{Name: lockName, Net: "unix"}
	for {
		l, err := net.ListenUnix("unix", addr)
		if err == nil {
			defer func() { _ = l.Close() }()
			return l.File()
		}
		if !errors.Is(err, syscall.EADDRINUSE) {
			return nil, fmt.Errorf("take the lab's lock: %w", err)
		}
		onWait()
		if err := await(ctx, addr); err != nil {
			return nil, fmt.Errorf("wait for another lab on this machine to end: %w", err)
		}
	}
}

func await(ctx context.Context, addr *net.UnixAddr) error {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", addr.Name)
	if err != nil {
		return ctx.Err() // gone in between: try to take it
	}
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	_, _ = conn.Read(make([]byte, 1)) // ends with the other lab
	_ = conn.Close()
	return ctx.Err()
}

func read(path string) (string, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	return strings.TrimSpace(string(b)), nil
}

// Run is the role.
func Run(_ context.Context, c *role.Conn) error {
	var sp spec
	if err := c.Spec(&sp); err != nil {
		return err
	}
	if err := c.AwaitEnd(); err != nil {
		return err
	}
	return restore(sp)
}

func restore(sp spec) error {
	var errs []error
	for _, s := range sp.Settings {
		now, err := read(s.Path)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		// Somebody else's newer value is left alone.
		if now == s.Now {
			errs = append(errs, os.WriteFile(s.Path, []byte(s.Was), 0))
		}
	}
	if sp.Dir != "" {
		errs = append(errs, os.RemoveAll(sp.Dir))
	}
	return errors.Join(errs...)
}
