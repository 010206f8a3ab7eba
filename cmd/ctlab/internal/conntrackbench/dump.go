package conntrackbench

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"
)

// unreadDump receives the whole table and looks at nothing but where it ends: the least that any
// reader must do. It returns the bytes received.
func unreadDump(buf []byte) (received int, err error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return 0, fmt.Errorf("open netlink socket: %w", err)
	}
	defer unix.Close(fd)
	request := make([]byte, 20) // struct nlmsghdr and struct nfgenmsg
	binary.NativeEndian.PutUint32(request, uint32(len(request)))
	binary.NativeEndian.PutUint16(request[4:], 1<<8|1) // IPCTNL_MSG_CT_GET
	binary.NativeEndian.PutUint16(request[6:], unix.NLM_F_REQUEST|unix.NLM_F_DUMP)
	if _, err := unix.Write(fd, request); err != nil {
		return 0, fmt.Errorf("ask for a dump: %w", err)
	}
	for {
		n, err := unix.Read(fd, buf)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return received, fmt.Errorf("receive dump: %w", err)
		}
		received += n
		// The end comes in a message of its own, or alone behind the last entries of a datagram.
		if n < 20 || binary.NativeEndian.Uint16(buf[4:]) == unix.NLMSG_DONE ||
			binary.NativeEndian.Uint16(buf[n-16:]) == unix.NLMSG_DONE {
			return received, nil
		}
	}
}
