package state

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// errElsewhere says that an agent's process is not to be found.
var errElsewhere = errors.New("its process is not among those that can be seen from here " +
	"(it may be in another container, or you may not be root)")

// Kill ends the agent that guards the network namespace of the calling thread, however it hangs, and waits
// until it is gone and with it the rules that its socket owns. It returns the number of the process. That is an agent
// for certain: it holds the lock.
func Kill(ctx context.Context) (pid int, err error) {
	agents, err := instances()
	if err != nil || len(agents) == 0 {
		return 0, err
	}
	pid, fd, err := holder(agents[0])
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return pid, fmt.Errorf("end process %d: %w", pid, err)
	}
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int((100 * time.Millisecond).Milliseconds()))
		if n > 0 {
			break
		}
		if err != nil && !errors.Is(err, unix.EINTR) {
			return pid, fmt.Errorf("wait for the end of process %d: %w", pid, err)
		}
		if ctx.Err() != nil {
			return pid, fmt.Errorf("process %d does not end, though it was killed: it waits in the kernel, "+
				"for a disk perhaps, or is frozen", pid)
		}
	}
	return pid, nil
}

// holder returns the process that holds a socket, and a descriptor of it that never comes to mean another.
func holder(inode uint32) (pid, fd int, err error) {
	link := fmt.Sprintf("socket:[%d]", inode)
	processes, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return 0, 0, err
	}
	for _, dir := range processes {
		if pid, err = strconv.Atoi(filepath.Base(dir)); err != nil || !holds(dir, link) {
			continue
		}
		if fd, err = unix.PidfdOpen(pid, 0); err != nil {
			return 0, 0, fmt.Errorf("process %d: %w", pid, err)
		}
		if holds(dir, link) { // still the same process, which the descriptor is of
			return pid, fd, nil
		}
		unix.Close(fd)
	}
	return 0, 0, errElsewhere
}

// holds reports whether a process has a descriptor of what a link leads to.
func holds(dir, link string) bool {
	descriptors, err := os.ReadDir(filepath.Join(dir, "fd"))
	if err != nil {
		return false // not ours to look at, or gone
	}
	for _, d := range descriptors {
		if to, err := os.Readlink(filepath.Join(dir, "fd", d.Name())); err == nil && to == link {
			return true
		}
	}
	return false
}
