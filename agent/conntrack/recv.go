package conntrack

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// recv is recv(2). unix.Recvfrom makes a socket address for each call, and unix.Read cannot say
// that a message was cut; this one allocates nothing and, with MSG_TRUNC, returns the real length.
func recv(fd int, buf []byte, flags int) (int, error) {
	n, _, errno := unix.Syscall6(unix.SYS_RECVFROM, uintptr(fd),
		uintptr(unsafe.Pointer(unsafe.SliceData(buf))), uintptr(len(buf)), uintptr(flags), 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}
