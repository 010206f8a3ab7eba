package survey

import (
	"encoding/binary"
	"errors"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// watch knows whether the rules of a namespace may have changed in a way that matters. The kernel tells listeners of
// each change; the messages wait in the socket's small buffer until somebody asks, and when it overflows everything
// may have changed. The number of the ruleset's generation would not do: it rises with each element of any set, too.
// Elements that come and go in sets which no answer depends on, as with lists of bad addresses,
// do not matter.
type watch struct {
	fd       int // negative where the kernel does not let us listen
	buffer   []byte
	followed map[setKey]*nftSet
}

// mostNews is how many parts of the news are read at once: more of them count as a change.
const mostNews = 4096

// newsBuffer is how many bytes of news may wait, half of what the kernel counts: while ten thousand rules are read on a
// slow machine, some hundred elements of a set come and go, and the usual buffer (net.core.rmem_default) has room for
// one or two hundred.
const newsBuffer = 1 << 19

// newWatch begins to listen in the calling thread's namespace.
func newWatch() *watch {
	w := &watch{fd: -1}
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_NETFILTER)
	if err != nil {
		return w
	}
	err = unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1 << (unix.NFNLGRP_NFTABLES - 1)})
	if err != nil {
		unix.Close(fd)
		return w
	}
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, newsBuffer) // else it is what the kernel gives
	w.fd, w.buffer = fd, make([]byte, dumpBuffer)
	return w
}

func (w *watch) close() error {
	if w.fd < 0 {
		return nil
	}
	return unix.Close(w.fd)
}

// follow names the sets on whose elements the answer depends.
func (w *watch) follow(sets map[setKey]*nftSet) { w.followed = sets }

// changed says whether something that matters may have changed since it was last asked.
func (w *watch) changed() (changed bool) {
	if w.fd < 0 {
		return true
	}
	for range mostNews {
		n, _, flags, _, err := unix.Recvmsg(w.fd, w.buffer, nil, 0)
		switch {
		case errors.Is(err, unix.EAGAIN):
			return changed
		case errors.Is(err, unix.EINTR):
		case err != nil || flags&unix.MSG_TRUNC != 0: // ENOBUFS: some of the news is lost
			changed = true
		default:
			changed = changed || w.matter(w.buffer[:n])
		}
	}
	return true
}

// matter says whether one of several messages is about something that matters.
func (w *watch) matter(b []byte) bool {
	for len(b) >= unix.NLMSG_HDRLEN {
		length := int(binary.NativeEndian.Uint32(b))
		if length < unix.NLMSG_HDRLEN+4 || length > len(b) {
			return true
		}
		if w.matters(binary.NativeEndian.Uint16(b[4:]), b[unix.NLMSG_HDRLEN:length]) {
			return true
		}
		b = b[min(len(b), (length+unix.NLMSG_ALIGNTO-1)&^(unix.NLMSG_ALIGNTO-1)):]
	}
	return false
}

// matters says whether one message does. What is not known here does.
func (w *watch) matters(kind uint16, b []byte) bool {
	switch kind &^ (unix.NFNL_SUBSYS_NFTABLES << 8) {
	case unix.NFT_MSG_NEWGEN: // the end of a change, told of before
		return false
	case unix.NFT_MSG_NEWSET, unix.NFT_MSG_DELSET, unix.NFT_MSG_NEWOBJ, unix.NFT_MSG_DELOBJ,
		unix.NFT_MSG_NEWFLOWTABLE, unix.NFT_MSG_DELFLOWTABLE:
		return false // without a rule that refers to it, of which we are told too, it does nothing
	case unix.NFT_MSG_NEWSETELEM, unix.NFT_MSG_DELSETELEM:
		// The first two attributes of both kinds are the table and the set.
		table := tableKey{nftables.TableFamily(b[0]), text(attribute(b[4:], unix.NFTA_SET_ELEM_LIST_TABLE))}
		s := w.followed[setKey{table, text(attribute(b[4:], unix.NFTA_SET_ELEM_LIST_SET))}]
		return s != nil && s.all // else it counts as one that has everything, as it still does
	case unix.NFT_MSG_NEWTABLE, unix.NFT_MSG_DELTABLE, unix.NFT_MSG_NEWCHAIN, unix.NFT_MSG_DELCHAIN,
		unix.NFT_MSG_NEWRULE, unix.NFT_MSG_DELRULE:
		// The first attribute of each is the table.
		return !tableOf(b).skipped()
	}
	return true
}
