package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/signal"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"ctguard/agent/config"
)

// The main goroutine keeps the main thread. An exec from another thread would lose the signal that
// ends this process with its supervisor, and a supervisor must start agents from a thread that lasts:
// prctl(2), PR_SET_PDEATHSIG.
func init() { runtime.LockOSThread() }

// inside loads the configuration for a command that works in the namespace itself, and goes there.
func (p *program) inside(ctx context.Context) (config.Config, error) {
	if err := enter(ctx, p.namespace); err != nil {
		return config.Config{}, err
	}
	return p.config()
}

// enter moves this process into a network namespace. Go's threads cannot move together, so one goes and
// has the program begin anew there, where there is nothing left to do.
func enter(ctx context.Context, n config.Namespace) error {
	if n.IsHost() {
		return nil
	}
	f, err := os.Open(n.Path)
	if errors.Is(err, fs.ErrNotExist) {
		return usage(fmt.Errorf("there is no network namespace %s", n),
			"ip netns list shows their names; a path such as /proc/PID/ns/net will do, too")
	}
	if err != nil {
		return fmt.Errorf("open network namespace: %w", err)
	}
	defer f.Close()
	if there, err := isHere(f.Stat()); there || err != nil {
		return err
	}
	switch err := unix.Setns(int(f.Fd()), unix.CLONE_NEWNET); {
	case errors.Is(err, unix.EINVAL):
		return usage(fmt.Errorf("%s is no network namespace", n.Path), "ip netns list shows their names")
	case err != nil:
		return fmt.Errorf("enter network namespace %s: %w (ctguard needs root: run it with sudo)", n, err)
	}
	program, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find own program: %w", err)
	}
	// A signal must end this process from here on: what Go has caught is lost with an exec.
	signal.Reset(os.Interrupt, unix.SIGTERM)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return fmt.Errorf("begin anew in network namespace %s: %w", n, unix.Exec(program, os.Args, os.Environ()))
}

// isHere reports whether what stat found is the network namespace of the calling thread.
func isHere(there os.FileInfo, err error) (bool, error) {
	if err != nil {
		return false, err
	}
	here, err := os.Stat("/proc/thread-self/ns/net")
	if err != nil {
		return false, fmt.Errorf("find own network namespace: %w", err)
	}
	return os.SameFile(here, there), nil
}

// lookPause is how often an agent looks whether its namespace still has its name.
const lookPause = 2 * time.Second

// whileNamed returns a context that ends when the name of a namespace leads elsewhere, or nowhere: a
// container has gone or was made anew, and its namespace must not be kept alive by its guard.
func whileNamed(ctx context.Context, n config.Namespace) (context.Context, context.CancelCauseFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	if n.IsHost() {
		return ctx, cancel
	}
	go func() {
		ticker := time.NewTicker(lookPause)
		defer ticker.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
			}
			if here, _ := isHere(os.Stat(n.Path)); !here {
				cancel(fmt.Errorf("network namespace %s is gone, or another has its name now", n))
			}
		}
	}()
	return ctx, cancel
}
