package state

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// instanceName is how the name of the socket begins that an agent holds as long as it runs; random letters
// follow, so that nobody can have taken it before. Agents before 0.2 held the name without them.
const instanceName = "@ctguard"

// ErrRunning says that another agent guards this network namespace.
var ErrRunning = errors.New("another ctguard guards this network namespace")

// LockInstance makes sure that this agent is the only one in its network namespace, until the closer is
// closed. It holds an abstract socket: those belong to a network namespace, whatever is mounted at /run, and vanish
// with their process (unix(7)). Nobody listens on it, so that who connects is refused by the kernel and costs
// nothing. Strangers may have sockets with such names, too: only those
// of root and of ctguard's own account count.
func LockInstance() (io.Closer, error) {
	random := make([]byte, 8)
	_, _ = rand.Read(random) // it never fails
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("claim network namespace: %w", err)
	}
	held := os.NewFile(uintptr(fd), "instance lock")
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: instanceName + "/" + hex.EncodeToString(random)}); err != nil {
		held.Close()
		return nil, fmt.Errorf("claim network namespace: %w", err)
	}
	// Whoever binds first and looks then sees the other, or is seen. Two that start at the same moment see each
	// other, and neither stays: better than both.
	agents, err := instances()
	if err == nil && len(agents) > 1 {
		err = fmt.Errorf("%w: see ctguard status", ErrRunning)
	}
	if err != nil {
		held.Close()
		return nil, err
	}
	return held, nil
}

// Running reports whether an agent guards the network namespace of the calling thread.
func Running() bool {
	agents, err := instances()
	return err == nil && len(agents) > 0
}
