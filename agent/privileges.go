package agent

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// errPrivilege says what an agent lacks that can't work here.
var errPrivilege = errors.New("ctguard needs root, or CAP_NET_ADMIN and, to try what this kernel can do before it " +
	"gives that up, CAP_SYS_ADMIN: run it with sudo, or as the unit does")

// checkPrivileges says whether this process may do what an agent does.
func checkPrivileges() error {
	header, sets := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, [2]unix.CapUserData{}
	if err := unix.Capget(&header, &sets[0]); err != nil {
		return fmt.Errorf("read privileges: %w", err)
	}
	for _, needed := range []uint{unix.CAP_NET_ADMIN, unix.CAP_SYS_ADMIN} {
		if sets[0].Effective&(1<<needed) == 0 {
			return errPrivilege
		}
	}
	return nil
}

// dropPrivileges gives up, for the rest of this process's life, everything but CAP_NET_ADMIN. Root's process keeps what
// it has: who owns all files gains nothing by it, and the configuration may name paths that only root reaches.
func dropPrivileges() error {
	if os.Geteuid() == 0 {
		return nil
	}
	header, sets := onlyNetAdmin()
	// Capabilities are a thread's: each of them must give them up.
	_, _, errno := syscall.AllThreadsSyscall(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&header)),
		uintptr(unsafe.Pointer(&sets[0])), 0)
	if errno == 0 {
		// Without it a program that this one starts would have them again.
		_, _, errno = syscall.AllThreadsSyscall(unix.SYS_PRCTL, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0)
	}
	switch {
	case errno == 0:
		return nil
	case errors.Is(errno, unix.ENOTSUP):
		return errors.New("give up privileges: a ctguard that was built with cgo can't (CGO_ENABLED=0): run it as root")
	}
	return fmt.Errorf("give up privileges: %w", errno)
}

// dropThreadPrivileges is [dropPrivileges] for the calling thread, which must end with its work.
func dropThreadPrivileges() error {
	header, sets := onlyNetAdmin()
	if err := unix.Capset(&header, &sets[0]); err != nil {
		return fmt.Errorf("give up privileges: %w", err)
	}
	return nil
}

// onlyNetAdmin is what capset(2) takes to leave a thread with CAP_NET_ADMIN alone.
func onlyNetAdmin() (unix.CapUserHeader, [2]unix.CapUserData) {
	const only = 1 << unix.CAP_NET_ADMIN
	return unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3},
		[2]unix.CapUserData{{Effective: only, Permitted: only}}
}
