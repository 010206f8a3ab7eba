package survey

import (
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// dumpPatience bounds the wait for each part of a dump, which the kernel has at hand.
const dumpPatience = 10 * time.Second

// dumpBuffer holds what the kernel sends at once: at most 32 KiB (netlink_dump in net/netlink/af_netlink.c).
const dumpBuffer = 1 << 16

var errInterrupted = errors.New("the rules changed while they were read")

// dump asks nf_tables of the calling thread's namespace for everything of one kind and hands each answer to
// each, until that returns false. An answer is only good until each returns: a host can have ten thousand rules,
// so they are read one by one from the same buffer. (The library makes objects of all of them first, leaves out
// expressions that it does not know, and needs seconds for a large set.) Where something changed meanwhile it returns
// errInterrupted, in the end: some answers may be missing.
func dump(kind uint16, family byte, request []byte, each func(answer []byte) (more bool)) error {
	return ask(kind, unix.NLM_F_DUMP, family, request, each)
}

// ask is dump for any kind of question.
func ask(kind, flags uint16, family byte, request []byte, each func(answer []byte) (more bool)) error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return fmt.Errorf("open a netlink socket: %w", err)
	}
	defer unix.Close(fd)
	wait := unix.NsecToTimeval(dumpPatience.Nanoseconds())
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &wait); err != nil {
		return fmt.Errorf("bound the wait for netlink: %w", err)
	}
	message := make([]byte, unix.NLMSG_HDRLEN+4, unix.NLMSG_HDRLEN+4+len(request)) // with struct nfgenmsg
	binary.NativeEndian.PutUint32(message, uint32(cap(message)))
	binary.NativeEndian.PutUint16(message[4:], unix.NFNL_SUBSYS_NFTABLES<<8|kind)
	binary.NativeEndian.PutUint16(message[6:], unix.NLM_F_REQUEST|flags)
	message[unix.NLMSG_HDRLEN] = family
	message = append(message, request...)
	if err := unix.Sendto(fd, message, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("ask netlink: %w", err)
	}
	buffer := make([]byte, dumpBuffer)
	interrupted := false
	for {
		n, err := receive(fd, buffer)
		if err != nil {
			return err
		}
		for b := buffer[:n]; len(b) >= unix.NLMSG_HDRLEN; {
			length := int(binary.NativeEndian.Uint32(b))
			if length < unix.NLMSG_HDRLEN || length > len(b) {
				return errors.New("an answer of netlink is cut off")
			}
			one := b[unix.NLMSG_HDRLEN:length]
			interrupted = interrupted || binary.NativeEndian.Uint16(b[6:])&unix.NLM_F_DUMP_INTR != 0
			switch kind := binary.NativeEndian.Uint16(b[4:]); {
			case kind == unix.NLMSG_DONE || kind == unix.NLMSG_ERROR:
				if err := outcome(one); err != nil || !interrupted {
					return err
				}
				return errInterrupted
			case len(one) < 4:
				return errors.New("an answer of netlink is cut off")
			case !each(one):
				return nil
			}
			b = b[min(len(b), (length+unix.NLMSG_ALIGNTO-1)&^(unix.NLMSG_ALIGNTO-1)):]
		}
	}
}

// receive waits for the next part of a dump.
func receive(fd int, buffer []byte) (int, error) {
	for {
		n, _, flags, _, err := unix.Recvmsg(fd, buffer, nil, 0)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return 0, fmt.Errorf("read from netlink: %w", err)
		case flags&unix.MSG_TRUNC != 0:
			return 0, errors.New("an answer of netlink is longer than expected")
		default:
			return n, nil
		}
	}
}

// outcome is the error with which a dump ends, if any.
func outcome(b []byte) error {
	if len(b) < 4 {
		return nil
	}
	if code := int32(binary.NativeEndian.Uint32(b)); code != 0 {
		return unix.Errno(-code)
	}
	return nil
}

// attributes goes over netlink attributes without copying them.
func attributes(b []byte) iter.Seq2[uint16, []byte] {
	return func(yield func(uint16, []byte) bool) {
		for len(b) >= unix.NLA_HDRLEN {
			length := int(binary.NativeEndian.Uint16(b))
			if length < unix.NLA_HDRLEN || length > len(b) {
				return
			}
			kind := binary.NativeEndian.Uint16(b[2:]) &^ (unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER)
			if !yield(kind, b[unix.NLA_HDRLEN:length]) {
				return
			}
			b = b[min(len(b), (length+unix.NLA_ALIGNTO-1)&^(unix.NLA_ALIGNTO-1)):]
		}
	}
}

// attribute returns one attribute of several; nil if it isn't there.
func attribute(b []byte, wanted uint16) []byte {
	for kind, value := range attributes(b) {
		if kind == wanted {
			return value
		}
	}
	return nil
}

// number reads an attribute that is a number, 0 if it isn't there; nf_tables sends them in network order.
func number(b []byte, wanted uint16) uint32 {
	if value := attribute(b, wanted); len(value) == 4 {
		return binary.BigEndian.Uint32(value)
	}
	return 0
}

// text is a string attribute without the zero that ends it.
func text(b []byte) string { return strings.TrimRight(string(b), "\x00") }

// textAttribute is an attribute that asks for something by name.
func textAttribute(kind uint16, value string) []byte {
	b := make([]byte, unix.NLA_HDRLEN, unix.NLA_HDRLEN+len(value)+unix.NLA_ALIGNTO)
	binary.NativeEndian.PutUint16(b, uint16(unix.NLA_HDRLEN+len(value)+1))
	binary.NativeEndian.PutUint16(b[2:], kind)
	b = append(append(b, value...), 0)
	for len(b)%unix.NLA_ALIGNTO != 0 {
		b = append(b, 0)
	}
	return b
}
