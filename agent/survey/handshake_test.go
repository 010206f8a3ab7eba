package survey

import (
	"encoding/binary"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ctguard/agent/conntrack/conntracktest"
	"ctguard/policy"
)

// enterPair moves the test into a network namespace with another host beside it.
func enterPair(t *testing.T, programs ...string) *conntracktest.Peer {
	t.Helper()
	enter(t, programs...)
	run(t, "ip link del world")
	peer, err := conntracktest.NewPeer()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(peer.Close)
	return peer
}

// set writes a setting of the namespace, by its path below /proc/sys/net.
func set(t *testing.T, name, value string) {
	t.Helper()
	if err := os.WriteFile("/proc/sys/net/"+name, []byte(value), 0o644); err != nil {
		t.Fatal(err)
	}
}

// What Handshake says is what the kernel's own SYN-ACK says, in whatever way the host is set.
func TestHandshake(t *testing.T) {
	peer := enterPair(t)
	listen(t, "tcp", ":80")
	h := New("/")
	for _, c := range []struct{ name, setting, value, command string }{
		{name: "as it comes"},
		{"a small buffer", "ipv4/tcp_rmem", "4096 131072 6291456", ""},
		{"no larger than the global bound", "ipv4/tcp_rmem", "4096 65536 65536", ""},
		{"the largest buffer", "ipv4/tcp_rmem", "4096 131072 2147483647", ""},
		{"no timestamps", "ipv4/tcp_timestamps", "0", ""},
		{"timestamps without offset", "ipv4/tcp_timestamps", "2", ""},
		{"no SACK", "ipv4/tcp_sack", "0", ""},
		{"no window scaling", "ipv4/tcp_window_scaling", "0", ""},
		{"a router's MTU", "ipv6/conf/here0/mtu", "1300", ""},
		{"a tunnel's MTU", "", "", "ip link set here0 mtu 1400"},
		{"jumbo frames", "", "", "ip link set here0 mtu 9000"},
		{"no packet fits", "", "", "ip link set here0 mtu 65535"},
		{"the least MTU", "", "", "ip link set here0 mtu 1280"},
	} {
		if c.setting != "" {
			set(t, c.setting, c.value)
		}
		if c.command != "" {
			run(t, c.command)
		}
		got, err := h.Handshake()
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
		four := synAck(t, peer, netip.AddrPortFrom(conntracktest.Here4, 80))
		six := synAck(t, peer, netip.AddrPortFrom(conntracktest.Here6, 80))
		want := four
		want.MSS6 = six.MSS6
		if four.MSS4 = 0; four.WindowScale != six.WindowScale || four.SACK != six.SACK || four.Timestamps != six.Timestamps {
			t.Errorf("%s: the families differ: %+v, %+v", c.name, four, six)
		}
		if got != want {
			t.Errorf("%s: %+v, but the kernel says %+v", c.name, got, want)
		}
	}
}

// The smallest interface that is up counts, loopback does not.
func TestHandshakeOfSeveralInterfaces(t *testing.T) {
	enter(t)
	h := New("/")
	run(t, "ip link add small type veth peer name other")
	for _, c := range []struct {
		command    string
		mss4, mss6 uint16
	}{
		{"ip link set small mtu 1400", 1460, 1440}, // down
		{"ip link set small up", 1360, 1340},
		{"ip link set small mtu 1000", 960, 1440}, // too small for IPv6
		{"ip link set small down", 1460, 1440},
		{"ip link del world", 536, 1220},
	} {
		run(t, c.command)
		if got, err := h.Handshake(); err != nil || got.MSS4 != c.mss4 || got.MSS6 != c.mss6 {
			t.Errorf("%s: %+v (%v), want %d and %d", c.command, got, err, c.mss4, c.mss6)
		}
	}
	h, _ = fixture(t, nil)
	if got, err := h.Handshake(); err == nil {
		t.Errorf("without settings: %+v and no error", got)
	}
}

// synAck connects from the peer and returns what the SYN-ACK says.
func synAck(t *testing.T, peer *conntracktest.Peer, to netip.AddrPort) (said policy.Handshake) {
	t.Helper()
	peer.Do(func() {
		network := uint16(unix.ETH_P_IP)
		if to.Addr().Is6() {
			network = unix.ETH_P_IPV6
		}
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM, int(network>>8|network<<8))
		if err != nil {
			t.Error(err)
			return
		}
		defer unix.Close(fd)
		_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 5})
		c, err := (&net.Dialer{Timeout: 5 * time.Second}).Dial("tcp", to.String())
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		for packet := make([]byte, 1<<16); ; {
			n, _, err := unix.Recvfrom(fd, packet, 0)
			if err != nil {
				t.Errorf("no SYN-ACK: %v", err)
				return
			}
			if segment, ok := tcpSegment(packet[:n]); ok && segment[13]&0x12 == 0x12 {
				said = options(segment, to.Addr().Is6())
				return
			}
		}
	})
	return said
}

// tcpSegment returns the TCP part of an IP packet without extension headers.
func tcpSegment(packet []byte) ([]byte, bool) {
	switch {
	case len(packet) >= 40 && packet[0]>>4 == 4 && packet[9] == unix.IPPROTO_TCP:
		return packet[4*int(packet[0]&15):], true
	case len(packet) >= 60 && packet[0]>>4 == 6 && packet[6] == unix.IPPROTO_TCP:
		return packet[40:], true
	}
	return nil, false
}

// options reads the options of a segment: RFC 9293, 3.2; RFC 7323, 2 and 3; RFC 2018, 2.
func options(segment []byte, six bool) (said policy.Handshake) {
	list := segment[20 : 4*int(segment[12]>>4)]
	for len(list) > 1 && list[0] != 0 {
		if list[0] == 1 {
			list = list[1:]
			continue
		}
		switch value := list[2:list[1]]; list[0] {
		case 2:
			if said.MSS4 = binary.BigEndian.Uint16(value); six {
				said.MSS4, said.MSS6 = 0, said.MSS4
			}
		case 3:
			said.WindowScale = value[0]
		case 4:
			said.SACK = true
		case 8:
			said.Timestamps = true
		}
		list = list[list[1]:]
	}
	return said
}

// Nonsense in a setting is an error, not a handshake that the host never makes.
func TestWindowScaleOfFiles(t *testing.T) {
	for _, c := range []struct {
		rmem, most string
		want       uint8
		fails      string
	}{
		{rmem: "4096\t131072\t6291456\n", most: "212992\n", want: 7},
		{rmem: "4096\t131072\t6291456\n", want: 7}, // a namespace of an older kernel
		{rmem: "4096 16384 32768", most: "65536", want: 1},
		{rmem: "4096 16384 32768", most: "16384", want: 0},
		{rmem: "4096 16384", fails: "not 3 numbers"},
		{rmem: "4096 16384 much", fails: "tcp_rmem"},
	} {
		files := map[string]string{"proc/sys/net/ipv4/tcp_rmem": c.rmem}
		if c.most != "" {
			files["proc/sys/net/core/rmem_max"] = c.most
		}
		h, _ := fixture(t, files)
		got, err := h.windowScale()
		if failed := err != nil && strings.Contains(err.Error(), c.fails); got != c.want || failed != (c.fails != "") {
			t.Errorf("%q and %q: %d (%v), want %d", c.rmem, c.most, got, err, c.want)
		}
	}
}
