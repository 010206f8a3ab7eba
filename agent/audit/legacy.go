package audit

import (
	"bytes"
	"encoding/binary"
	"math/bits"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The numbers of include/uapi/linux/netfilter_ipv4/ip_tables.h and its sibling for IPv6.
const (
	levelIPv4 = unix.IPPROTO_IP
	levelIPv6 = unix.IPPROTO_IPV6
	getInfo   = 64 // IPT_SO_GET_INFO and IP6T_SO_GET_INFO
)

// legacyInfo is struct ipt_getinfo.
type legacyInfo struct {
	Name       [32]byte
	ValidHooks uint32
	HookEntry  [5]uint32
	Underflow  [5]uint32
	NumEntries uint32
	Size       uint32
}

// hasLegacyRules says whether a table of iptables-legacy has more than the policies that each begins with: one
// entry a hook, and one that ends it. Nothing but the table itself tells, for the kernel keeps empty ones. One
// that can't be asked counts as having rules.
func hasLegacyRules(level int, table string) bool {
	family := unix.AF_INET
	if level == levelIPv6 {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		return true
	}
	defer unix.Close(fd)
	var info legacyInfo
	copy(info.Name[:], table)
	b := make([]byte, unsafe.Sizeof(info))
	if n, err := binary.Encode(b, binary.NativeEndian, info); err != nil || n != len(b) {
		return true
	}
	size := uint32(len(b))
	if _, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), uintptr(level), getInfo,
		uintptr(unsafe.Pointer(&b[0])), uintptr(unsafe.Pointer(&size)), 0); errno != 0 {
		return true
	}
	if err := binary.Read(bytes.NewReader(b), binary.NativeEndian, &info); err != nil {
		return true
	}
	return int(info.NumEntries) > bits.OnesCount32(info.ValidHooks)+1
}
