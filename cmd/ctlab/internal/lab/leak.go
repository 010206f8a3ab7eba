package lab

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"

	"ctguard/cmd/ctlab/internal/packet"
)

// leakExamples is how many leaked packets are told in full.
const leakExamples = 5

// leakWatch counts the IPv4 packets that arrive at the far end of an outer link with an inside
// address as their source: what the gateway should have translated and did not. IPv6 is not
// translated here.
//
// The kernel filters and counts; nobody reads the socket before the end, and what does not fit
// into its buffer is counted all the same.
type leakWatch struct {
	fd int
	at link
}

// watchLeaks opens a watch at each outer link.
func (s *site) watchLeaks() ([]*leakWatch, error) {
	var out []*leakWatch
	for _, l := range s.outer {
		w := &leakWatch{at: l}
		if err := l.in.Do(func() error { return w.open(s.inside) }); err != nil {
			return out, fmt.Errorf("watch %s of %s: %w", l.dev, l.in.Name(), err)
		}
		out = append(out, w)
	}
	return out, nil
}

// open runs in the namespace of the link.
func (w *leakWatch) open(inside []netip.Prefix) error {
	iface, err := net.InterfaceByName(w.at.dev)
	if err != nil {
		return err
	}
	// Bound to no protocol yet, so that nothing passes before the filter is there.
	w.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("open packet socket: %w", err)
	}
	if err := packet.Attach(w.fd, packet.FromAny(inside)); err != nil {
		return errors.Join(err, unix.Close(w.fd))
	}
	proto := binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, packet.EtherIPv4))
	if err := unix.Bind(w.fd, &unix.SockaddrLinklayer{Ifindex: iface.Index, Protocol: proto}); err != nil {
		return errors.Join(fmt.Errorf("bind packet socket: %w", err), unix.Close(w.fd))
	}
	return nil
}

// read returns how many packets leaked, and the first of them.
func (w *leakWatch) read() (uint64, []string, error) {
	st, err := unix.GetsockoptTpacketStats(w.fd, unix.SOL_PACKET, unix.PACKET_STATISTICS)
	if err != nil {
		return 0, nil, fmt.Errorf("read packet statistics: %w", err)
	}
	return uint64(st.Packets), w.examples(), nil // those that were dropped for want of room are among them
}

// examples describes the packets in the buffer: the first ones.
func (w *leakWatch) examples() []string {
	var out []string
	buf := make([]byte, 128)
	for len(out) < leakExamples {
		n, _, err := unix.Recvfrom(w.fd, buf, 0)
		if err != nil {
			return out // no more of them
		}
		out = append(out, w.at.in.Name()+": "+packet.Describe(buf[:n]))
	}
	return out
}

func (w *leakWatch) close() { _ = unix.Close(w.fd) }

// readLeaks adds up the watches.
func (out *outcome) readLeaks(ws []*leakWatch) error {
	for _, w := range ws {
		n, examples, err := w.read()
		if err != nil {
			return err
		}
		if out.leaked == nil {
			out.leaked = new(uint64)
		}
		*out.leaked += n
		out.examples = append(out.examples, examples...)
	}
	return nil
}
