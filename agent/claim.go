package agent

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// claimName is the abstract socket that an agent holds as long as it runs.
const claimName = "@ctguard"

// claim makes sure that this agent is the only one in its network namespace. Abstract socket names
// belong to a network namespace and vanish with their process (unix(7)), so there is nothing to
// clean up after a crash. But anybody may take one: a name that somebody else than root holds is no
// agent's, and keeps none from its work.
func (a *Agent) claim() error {
	l, err := net.Listen("unix", claimName)
	if errors.Is(err, syscall.EADDRINUSE) {
		if Running() {
			return fmt.Errorf("%w: see ctguard status", ErrRunning)
		}
		a.trouble("claim", errors.New("a process that is not root's holds the abstract socket "+claimName+": a second ctguard here would go unnoticed"))
		return nil
	}
	if err != nil {
		return fmt.Errorf("claim network namespace: %w", err)
	}
	a.release = append(a.release, l.Close)
	go hangUp(l)
	return nil
}

// hangUp takes connections and ends them until the listener is closed: nobody can fill its queue, after
// which it would look as if no agent were running.
func hangUp(l net.Listener) {
	for {
		c, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			time.Sleep(time.Second) // out of descriptors, perhaps
			continue
		}
		c.Close()
	}
}

// Running reports whether an agent guards the network namespace of the calling thread.
func Running() bool {
	c, err := net.Dial("unix", claimName)
	if err != nil {
		return false
	}
	defer c.Close()
	raw, err := c.(*net.UnixConn).SyscallConn()
	if err != nil {
		return false
	}
	peer := peerOf(raw)
	return peer != nil && peer.Uid == 0
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
