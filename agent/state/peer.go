package state

import (
	"net"
	"os"
	"os/user"
	"slices"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Credentials are who is at the other end of a Unix socket, as the kernel noted it when that connected.
type Credentials struct {
	PID, UID int
	groups   []uint32 // the first is the group of its process, the others are its supplementary groups
}

// In reports whether the peer is a member of a group.
func (c *Credentials) In(gid int) bool { return gid >= 0 && slices.Contains(c.groups, uint32(gid)) }

// Peer returns the credentials of the process at the other end of a Unix socket (SO_PEERCRED and SO_PEERGROUPS,
// unix(7)); nil where nobody knows them.
func Peer(c net.Conn) (cred *Credentials) {
	local, ok := c.(*net.UnixConn)
	if !ok {
		return nil
	}
	raw, err := local.SyscallConn()
	if err != nil {
		return nil
	}
	_ = raw.Control(func(fd uintptr) {
		u, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
		if err != nil {
			return
		}
		cred = &Credentials{int(u.Pid), int(u.Uid), append([]uint32{u.Gid}, peerGroups(fd)...)}
	})
	return cred
}

// peerGroups returns the supplementary groups of a socket's peer; none before Linux 4.13.
func peerGroups(fd uintptr) []uint32 {
	groups := make([]uint32, 32)
	for range 2 { // the kernel says how many there are where there is too little room
		size := uint32(4 * len(groups))
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, fd, unix.SOL_SOCKET, unix.SO_PEERGROUPS,
			uintptr(unsafe.Pointer(&groups[0])), uintptr(unsafe.Pointer(&size)), 0)
		switch errno {
		case 0:
			return groups[:size/4]
		case unix.ERANGE:
			groups = make([]uint32, size/4)
		default:
			return nil
		}
	}
	return nil
}

// Account is the user that ctguard's unit runs it as.
const Account = "ctguard"

// trusted returns the users whose sockets may be an agent's: root, whoever runs this, and ctguard's account.
func trusted() []uint32 {
	users := []uint32{0, uint32(os.Geteuid())}
	if u, err := user.Lookup(Account); err == nil {
		if uid, err := strconv.ParseUint(u.Uid, 10, 32); err == nil {
			users = append(users, uint32(uid))
		}
	}
	return users
}
