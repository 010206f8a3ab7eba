package state

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Constants of include/uapi/linux/sock_diag.h and unix_diag.h.
const (
	sockDiagByFamily = 20
	showName         = 0x01 // UDIAG_SHOW_NAME
	showUID          = 0x40 // UDIAG_SHOW_UID
	attributeName    = 0    // UNIX_DIAG_NAME
	attributeUID     = 7    // UNIX_DIAG_UID
	sizeofRequest    = 24   // struct unix_diag_req
	sizeofMessage    = 16   // struct unix_diag_msg
)

// instances returns the inodes of the sockets that agents hold in the network namespace of the calling thread.
func instances() ([]uint32, error) {
	conn, err := netlink.Dial(unix.NETLINK_SOCK_DIAG, nil)
	if err != nil {
		return nil, fmt.Errorf("look for other agents: %w", err)
	}
	defer conn.Close()
	request := make([]byte, sizeofRequest)
	request[0] = unix.AF_UNIX
	binary.NativeEndian.PutUint32(request[4:], ^uint32(0)) // in any state
	binary.NativeEndian.PutUint32(request[12:], showName|showUID)
	answers, err := conn.Execute(netlink.Message{
		Header: netlink.Header{Type: sockDiagByFamily, Flags: netlink.Request | netlink.Dump}, Data: request})
	if err != nil {
		return nil, fmt.Errorf("look for other agents: %w", err)
	}
	users := trusted()
	var agents []uint32
	for _, m := range answers {
		if inode, ok := instance(m.Data, users); ok {
			agents = append(agents, inode)
		}
	}
	return agents, nil
}

// instance returns the inode of a socket if it is an agent's, which one of the users runs. Kernels before 5.3 don't
// say whose a socket is: there the lock of the state directory must do.
func instance(b []byte, users []uint32) (inode uint32, ok bool) {
	if len(b) < sizeofMessage || b[0] != unix.AF_UNIX {
		return 0, false
	}
	attributes, err := netlink.NewAttributeDecoder(b[sizeofMessage:])
	if err != nil {
		return 0, false
	}
	name, uid := "", ^uint32(0)
	for attributes.Next() {
		switch attributes.Type() {
		case attributeName:
			name = string(attributes.Bytes())
		case attributeUID:
			if data := attributes.Bytes(); len(data) == 4 {
				uid = binary.NativeEndian.Uint32(data)
			}
		}
	}
	abstract := "\x00" + instanceName[1:]
	ours := name == abstract || strings.HasPrefix(name, abstract+"/")
	return binary.NativeEndian.Uint32(b[4:]), attributes.Err() == nil && slices.Contains(users, uid) && ours
}
