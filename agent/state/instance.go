package state

import (
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// instanceName is the abstract socket that an agent holds as long as it runs.
const instanceName = "@ctguard"

var (
	// ErrRunning says that another agent guards this network namespace.
	ErrRunning = errors.New("another ctguard guards this network namespace")
	// ErrNameTaken says that the lock could not be taken because a stranger holds its name.
	ErrNameTaken = errors.New("a process that is not root's holds the abstract socket " + instanceName +
		": a second ctguard here would go unnoticed")
)

// LockInstance makes sure that this agent is the only one in its network namespace, until the closer is
// closed. Abstract socket names belong to a network namespace and vanish with their process (unix(7)), so
// there is nothing to clean up after a crash. But anybody may take one: a name that somebody else than root
// holds is no agent's, and keeps none from its work. [ErrNameTaken] says so, with nothing to close.
func LockInstance() (io.Closer, error) {
	l, err := net.Listen("unix", instanceName)
	if errors.Is(err, syscall.EADDRINUSE) {
		if Running() {
			return nil, fmt.Errorf("%w: see ctguard status", ErrRunning)
		}
		return nil, ErrNameTaken
	}
	if err != nil {
		return nil, fmt.Errorf("claim network namespace: %w", err)
	}
	go hangUp(l)
	return l, nil
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
	c, err := net.Dial("unix", instanceName)
	if err != nil {
		return false
	}
	defer c.Close()
	peer := Peer(c)
	return peer != nil && peer.Uid == 0
}

// Peer returns the credentials of the process at the other end of a Unix socket (SO_PEERCRED, unix(7)); nil
// where nobody knows them.
func Peer(c net.Conn) (cred *unix.Ucred) {
	local, ok := c.(*net.UnixConn)
	if !ok {
		return nil
	}
	raw, err := local.SyscallConn()
	if err != nil {
		return nil
	}
	_ = raw.Control(func(fd uintptr) { cred, _ = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	return cred
}
