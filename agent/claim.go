package agent

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"syscall"
)

// claim makes sure that this agent is the only one in its network namespace. Abstract socket names
// belong to a network namespace and vanish with their process (unix(7)), so there is nothing to
// clean up after a crash.
func (a *Agent) claim() error {
	l, err := net.Listen("unix", "@ctguard")
	if errors.Is(err, syscall.EADDRINUSE) {
		return fmt.Errorf("%w: see ctguard status", ErrRunning)
	}
	if err != nil {
		return fmt.Errorf("claim network namespace: %w", err)
	}
	a.release = append(a.release, l.Close)
	return nil
}

// Running reports whether an agent guards the network namespace of the calling thread.
func Running() bool {
	c, err := net.Dial("unix", "@ctguard")
	if err != nil {
		return false
	}
	c.Close()
	return true
}

// prepareStateDir makes the state directory, sees that it can be written, and locks it: the journal
// in it belongs to one agent.
func (a *Agent) prepareStateDir() error {
	dir := a.config.StateDir
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("state directory: %w (state_dir names another)", err)
	}
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("state directory cannot be written: %w (state_dir names another)", err)
	}
	a.release = append(a.release, f.Close)
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return fmt.Errorf("state directory %s is in use by another ctguard: give each namespace its own state_dir", dir)
	}
	return nil
}
