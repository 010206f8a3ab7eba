package survey

import (
	"errors"
	"fmt"
	"io/fs"
	"math/bits"
	"net"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"

	"ctguard/agent/procfile"
	"ctguard/policy"
)

// Bounds of what a SYN-ACK can say, in bytes: RFC 9293, 3.7.1, for the segments that every host
// accepts, and RFC 8200, 5; min_adv_mss in ip_rt_init (net/ipv4/route.c) and ip6_rt_min_advmss
// (net/ipv6/route.c) of the kernel; RFC 7323, 2.3.
const (
	headers4, headers6 = 20 + 20, 40 + 20 // of IP and TCP; the options of TCP don't count (RFC 6691)
	leastMTU6          = 1280             // an interface with less has no IPv6
	leastMSS4          = 256
	leastMSS6          = 1220
	anyMSS4            = 536
	mostMTU            = 65535
	mostWindowScale    = 14
)

// Handshake returns what this host's TCP says in a SYN-ACK unless its listener or the route asks for
// something else. The segment sizes are those of the smallest interface towards the world: a
// larger one only makes segments that must be cut. It reads the settings of the calling thread's namespace.
func (h *Host) Handshake() (policy.Handshake, error) {
	mtu4, mtu6, err := h.smallestMTU()
	if err != nil {
		return policy.Handshake{}, fmt.Errorf("read what a handshake says: %w", err)
	}
	answer := policy.Handshake{
		MSS4: uint16(max(mtu4-headers4, leastMSS4)),
		MSS6: uint16(max(mtu6-headers6, leastMSS6)),
	}
	scaling, sack, stamps := 0, 0, 0
	err = errors.Join(h.setting("ipv4/tcp_window_scaling", &scaling), h.setting("ipv4/tcp_sack", &sack),
		h.setting("ipv4/tcp_timestamps", &stamps))
	if err != nil {
		return policy.Handshake{}, fmt.Errorf("read what a handshake says: %w", err)
	}
	answer.SACK, answer.Timestamps = sack != 0, stamps != 0
	if scaling != 0 {
		if answer.WindowScale, err = h.windowScale(); err != nil {
			return policy.Handshake{}, fmt.Errorf("read what a handshake says: %w", err)
		}
	}
	return answer, nil
}

// windowScale follows tcp_select_initial_window in net/ipv4/tcp_output.c: the scale with which the
// largest buffer that a socket can ever get fits in sixteen bits. A smaller window_clamp (SO_RCVBUF or
// TCP_WINDOW_CLAMP of the listener, or the metric window of the route) makes it smaller.
func (h *Host) windowScale() (uint8, error) {
	var least, first, most, buffer int
	if err := h.setting("ipv4/tcp_rmem", &least, &first, &most); err != nil {
		return 0, err
	}
	// Before Linux 6.9 only the initial namespace shows this setting, which is global. It matters
	// only where it is above tcp_rmem, and it is far below by default.
	if err := h.setting("core/rmem_max", &buffer); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0, err
	}
	space := uint(max(most, buffer, 1))
	return uint8(min(max(bits.Len(space)-1-15, 0), mostWindowScale)), nil
}

// smallestMTU returns the smallest MTU of the interfaces that are up and not loopback, for each
// family, in bytes. Without such an interface it is what every host can receive.
func (h *Host) smallestMTU() (mtu4, mtu6 int, err error) {
	links, err := netlink.LinkList()
	if err != nil {
		return 0, 0, fmt.Errorf("list interfaces: %w", err)
	}
	mtu4, mtu6 = mostMTU+1, mostMTU+1
	for _, link := range links {
		a := link.Attrs()
		if a.Flags&net.FlagUp == 0 || a.Flags&net.FlagLoopback != 0 || a.MTU <= 0 {
			continue
		}
		mtu4 = min(mtu4, a.MTU)
		// A router can announce a smaller MTU for IPv6 alone (RFC 4861, 4.6.4).
		six := a.MTU
		if h.setting("ipv6/conf/"+a.Name+"/mtu", &six) == nil && six >= leastMTU6 {
			mtu6 = min(mtu6, six)
		}
	}
	if mtu4 > mostMTU {
		mtu4 = anyMSS4 + headers4
	}
	if mtu6 > mostMTU {
		mtu6 = leastMTU6
	}
	return mtu4, mtu6, nil
}

// setting reads the numbers of a setting of this namespace, by its path below /proc/sys/net.
func (h *Host) setting(name string, numbers ...*int) error {
	text, err := procfile.Read(filepath.Join(h.proc, "sys/net", name))
	if err != nil {
		return err
	}
	fields := strings.Fields(string(text))
	if len(fields) < len(numbers) {
		return fmt.Errorf("%s holds %q, not %d numbers", name, text, len(numbers))
	}
	for i, n := range numbers {
		if *n, err = strconv.Atoi(fields[i]); err != nil {
			return fmt.Errorf("read %s: %w", name, err)
		}
	}
	return nil
}
