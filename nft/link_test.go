package nft

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ctguard/agent/conntrack/conntrackfill"
	"ctguard/agent/conntrack/conntracktest"
)

// Addresses of the two hosts of a link. The client has several so that it can be several sources.
const (
	hostV4, hostV6 = "192.0.2.1", "2001:db8::1"
	client2        = "192.0.2.2"
	client3        = "192.0.2.3"
	client4        = "192.0.2.4"
	client6        = "2001:db8::2"
)

// patience bounds every wait for something that should come at once.
const patience = 5 * time.Second

// link is a host, in the test's own network namespace, and a client in another one.
type link struct {
	t      *testing.T
	client chan func() // runs in the client's namespace
}

// newLink makes the two namespaces, with conntrack at work on the host.
func newLink(t *testing.T) *link {
	t.Helper()
	inNewNetNS(t)
	l := &link{t: t, client: make(chan func())}
	t.Cleanup(func() { close(l.client) })
	thread := make(chan int)
	go func() {
		if err := conntrackfill.Enter(); err != nil {
			close(thread)
			return
		}
		thread <- unix.Gettid()
		for f := range l.client {
			f()
		}
	}()
	tid, ok := <-thread
	if !ok {
		t.Fatal("unshare network namespace of the client")
	}
	run(t, fmt.Sprintf("ip link add host0 type veth peer name client0 netns %d", tid))
	setUp(t, "host0", hostV4+"/24", hostV6+"/64")
	l.do(func() {
		setUp(t, "client0", client2+"/24", client3+"/24", client4+"/24", client6+"/64")
		usable(t)
	})
	usable(t)
	// Any rule about ct switches conntrack on in the namespace.
	feed(t, "table inet tracking {\n chain input {\n type filter hook input priority 0\n ct state invalid accept\n }\n}\n")
	return l
}

func usable(t *testing.T) {
	if err := conntracktest.Settle(); err != nil {
		t.Fatal(err)
	}
}

func setUp(t *testing.T, device string, addresses ...string) {
	run(t, "ip link set lo up")
	for _, a := range addresses {
		run(t, "ip address add "+a+" dev "+device+strings.Repeat(" nodad", strings.Count(a, "::")))
	}
	run(t, "ip link set "+device+" up")
}

// do runs f in the client's namespace.
func (l *link) do(f func()) {
	done := make(chan struct{})
	l.client <- func() { defer close(done); f() }
	<-done
}

// serve answers on a port of the host what it is sent, over TCP and UDP, IPv4 and IPv6.
func (l *link) serve(port int) {
	l.t.Helper()
	for _, addr := range []string{"0.0.0.0", "::"} {
		suffix := map[string]string{"0.0.0.0": "4", "::": "6"}[addr]
		at := net.JoinHostPort(addr, fmt.Sprint(port))
		listener, err := net.Listen("tcp"+suffix, at)
		if err != nil {
			l.t.Fatal(err)
		}
		packets, err := net.ListenPacket("udp"+suffix, at)
		if err != nil {
			l.t.Fatal(err)
		}
		l.t.Cleanup(func() { listener.Close(); packets.Close() })
		go echoStreams(listener)
		go echoPackets(packets)
	}
}

func echoStreams(listener net.Listener) {
	for {
		c, err := listener.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			buf := make([]byte, 512)
			for {
				n, err := c.Read(buf)
				if err != nil {
					return
				}
				c.Write(buf[:n])
			}
		}()
	}
}

func echoPackets(c net.PacketConn) {
	buf := make([]byte, 512)
	for {
		n, from, err := c.ReadFrom(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			c.WriteTo(buf[:n], from)
		}
	}
}

// dial connects from one of the client's addresses to a port of the host, waiting so long for a
// handshake that does not come.
func (l *link) dial(network, from string, port int, wait time.Duration) (net.Conn, error) {
	to := hostV4
	if strings.Contains(from, ":") {
		to = hostV6
	}
	d := net.Dialer{Timeout: wait}
	source := net.JoinHostPort(from, "0")
	if network == "tcp" {
		d.LocalAddr, _ = net.ResolveTCPAddr("tcp", source)
	} else {
		d.LocalAddr, _ = net.ResolveUDPAddr("udp", source)
	}
	var c net.Conn
	var err error
	l.do(func() { c, err = d.Dial(network, net.JoinHostPort(to, fmt.Sprint(port))) })
	if err == nil {
		l.t.Cleanup(func() { c.Close() })
	}
	return c, err
}

// mustDial is dial where nothing holds the connection back.
func (l *link) mustDial(network, from string, port int) net.Conn {
	l.t.Helper()
	c, err := l.dial(network, from, port, patience)
	if err != nil {
		l.t.Fatalf("%s from %s: %v", network, from, err)
	}
	return c
}

// refuses is how long a test waits before it takes a handshake for refused; counters then tell why
// it was.
const refuses = 200 * time.Millisecond

// echoed sends a line and waits for it to come back.
func echoed(c net.Conn, wait time.Duration) error {
	c.SetDeadline(time.Now().Add(wait))
	if _, err := c.Write([]byte("hello")); err != nil {
		return err
	}
	buf := make([]byte, 16)
	n, err := c.Read(buf)
	if err == nil && string(buf[:n]) != "hello" {
		err = fmt.Errorf("echoed %q", buf[:n])
	}
	return err
}

// mustEcho is echoed where nothing holds the packets back.
func mustEcho(t testing.TB, c net.Conn) {
	t.Helper()
	if err := echoed(c, patience); err != nil {
		t.Fatalf("echo from %v: %v", c.LocalAddr(), err)
	}
}

// entries returns the host's conntrack entries that one of the addresses is part of.
func entries(t testing.TB, address string) []string {
	t.Helper()
	family := "ipv4"
	if strings.Contains(address, ":") {
		family = "ipv6"
	}
	out, err := try("conntrack -L -f "+family+" --orig-src "+address, "")
	if err != nil {
		t.Fatalf("conntrack -L: %v\n%s", err, out)
	}
	var found []string
	for line := range strings.Lines(out) {
		if strings.Contains(line, "src=") {
			found = append(found, line)
		}
	}
	return found
}

func wantEntries(t testing.TB, address string, want int) {
	t.Helper()
	if got := entries(t, address); len(got) != want {
		t.Errorf("%d conntrack entries of %s, want %d:\n%s", len(got), address, want, strings.Join(got, ""))
	}
}

// strayACK sends a TCP segment that belongs to no connection from the client to the host. The packets
// of one sender arrive in the order in which they were sent.
func (l *link) strayACK(from string, port uint16) {
	l.t.Helper()
	l.segment(from, port, 0x10)
}

// segment sends a TCP segment with some flags, from an address that need not be the client's.
func (l *link) segment(from string, port uint16, flags byte) {
	l.t.Helper()
	l.do(func() { sendSegment(l.t, from, hostV4, port, flags) })
}

// sendSegment sends a TCP segment from the calling thread's namespace.
func sendSegment(t *testing.T, from, to string, port uint16, flags byte) {
	t.Helper()
	segment := make([]byte, 20)
	binary.BigEndian.PutUint16(segment[0:], 40000)
	binary.BigEndian.PutUint16(segment[2:], port)
	binary.BigEndian.PutUint32(segment[4:], 1)
	segment[12], segment[13] = 5<<4, flags
	binary.BigEndian.PutUint16(segment[14:], 1024)
	source, host := netip.MustParseAddr(from).As4(), netip.MustParseAddr(to).As4()
	pseudo := append(append(append([]byte{}, source[:]...), host[:]...), 0, unix.IPPROTO_TCP, 0, 20)
	binary.BigEndian.PutUint16(segment[16:], checksum(append(pseudo, segment...)))
	if err := sendRaw(unix.IPPROTO_TCP, source, host, segment); err != nil {
		t.Errorf("send segment: %v", err)
	}
}

// tooBig sends an ICMP error from the client about a segment that a service of the host would have
// sent it: fragmentation needed.
func (l *link) tooBig(from string, port uint16) {
	l.t.Helper()
	client, host := netip.MustParseAddr(from).As4(), netip.MustParseAddr(hostV4).As4()
	message := make([]byte, 8+20+8)
	message[0], message[1] = 3, 4
	inner := message[8:]
	inner[0], inner[3], inner[8], inner[9] = 0x45, 40, 64, unix.IPPROTO_TCP
	copy(inner[12:], host[:])
	copy(inner[16:], client[:])
	binary.BigEndian.PutUint16(inner[10:], checksum(inner[:20]))
	binary.BigEndian.PutUint16(inner[20:], port)
	binary.BigEndian.PutUint16(inner[22:], 40000)
	binary.BigEndian.PutUint16(message[2:], checksum(message))
	l.do(func() {
		if err := sendRaw(unix.IPPROTO_ICMP, client, host, message); err != nil {
			l.t.Errorf("send ICMP error: %v", err)
		}
	})
}

// sendRaw sends one packet of an IP protocol.
func sendRaw(protocol int, from, to [4]byte, payload []byte) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	if err := unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_TRANSPARENT, 1); err != nil {
		return os.NewSyscallError("setsockopt", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: from}); err != nil {
		return os.NewSyscallError("bind", err)
	}
	return os.NewSyscallError("sendto", unix.Sendto(fd, payload, 0, &unix.SockaddrInet4{Addr: to}))
}

// checksum is the internet checksum of an even number of bytes.
func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// ping sends one echo request from the calling thread's namespace and waits for the reply.
func ping(from, to string) error { return pingWithin(from, to, patience) }

// pingWithin waits so long for the reply.
func pingWithin(from, to string, wait time.Duration) error {
	network, request, reply := "ip4:icmp", byte(8), byte(0)
	if strings.Contains(from, ":") {
		network, request, reply = "ip6:ipv6-icmp", 128, 129
	}
	c, err := net.DialIP(network, &net.IPAddr{IP: net.ParseIP(from)}, &net.IPAddr{IP: net.ParseIP(to)})
	if err != nil {
		return err
	}
	defer c.Close()
	message := []byte{request, 0, 0, 0, 0x12, 0x34, 0, 1}
	binary.BigEndian.PutUint16(message[2:], checksum(message)) // of ICMPv6 the kernel makes it anew
	if _, err := c.Write(message); err != nil {
		return err
	}
	c.SetDeadline(time.Now().Add(wait))
	buf := make([]byte, 128)
	for {
		n, _, err := c.ReadFrom(buf) // without the IP header, which Read leaves in
		if err != nil {
			return err
		}
		if n >= 8 && buf[0] == reply && buf[4] == 0x12 && buf[5] == 0x34 {
			return nil
		}
	}
}

// refused reports whether the other side said that nobody is there.
func refused(err error) bool { return errors.Is(err, syscall.ECONNREFUSED) }
