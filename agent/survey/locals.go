package survey

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// locals returns the addresses of this host, those of a VRF among them, and what the routing table "local" has: the
// prefixes that it takes as if they were. The kernel is asked for that table alone: a router may have a million other
// routes.
func (h *Host) locals() ([]netip.Prefix, error) {
	own, err := h.Own()
	if err != nil {
		return nil, err
	}
	list, err := localRoutes()
	if err != nil {
		return nil, err
	}
	for _, addr := range own {
		list = append(list, netip.PrefixFrom(addr, addr.BitLen()))
	}
	return list, nil
}

// localRoutes returns what the routing table "local" has.
func localRoutes() ([]netip.Prefix, error) {
	conn, err := netlink.Dial(unix.NETLINK_ROUTE, nil)
	if err != nil {
		return nil, fmt.Errorf("list local routes: %w", err)
	}
	defer conn.Close()
	if err := conn.SetOption(netlink.GetStrictCheck, true); err != nil {
		return nil, fmt.Errorf("list local routes: %w", err) // before Linux 4.20
	}
	list := []netip.Prefix{
		netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128"),
		netip.MustParsePrefix("0.0.0.0/32"), netip.MustParsePrefix("::/128"),
	}
	for _, family := range []byte{unix.AF_INET, unix.AF_INET6} {
		request := make([]byte, unix.SizeofRtMsg)
		request[0], request[4] = family, unix.RT_TABLE_LOCAL
		messages, err := conn.Execute(netlink.Message{
			Header: netlink.Header{Type: unix.RTM_GETROUTE, Flags: netlink.Request | netlink.Dump}, Data: request,
		})
		if err != nil {
			return nil, fmt.Errorf("list local routes: %w", err)
		}
		for _, m := range messages {
			if len(m.Data) < unix.SizeofRtMsg || m.Data[7] != unix.RTN_LOCAL {
				continue
			}
			addr, ok := netip.AddrFromSlice(attribute(m.Data[unix.SizeofRtMsg:], unix.RTA_DST))
			if !ok { // the default route: everything is local
				addr = netip.IPv4Unspecified()
				if family == unix.AF_INET6 {
					addr = netip.IPv6Unspecified()
				}
			}
			if p := netip.PrefixFrom(addr, int(m.Data[1])); p.IsValid() {
				list = append(list, p)
			}
		}
	}
	return list, nil
}

// routesByMark says whether a rule of policy routing asks for the mark of packets (RFC 3549; ip-rule(8) fwmark).
// What can't be found out counts as yes.
func routesByMark() bool {
	conn, err := netlink.Dial(unix.NETLINK_ROUTE, nil)
	if err != nil {
		return true
	}
	defer conn.Close()
	for _, family := range []byte{unix.AF_INET, unix.AF_INET6} {
		request := make([]byte, unix.SizeofRtMsg) // struct fib_rule_hdr is as long
		request[0] = family
		messages, err := conn.Execute(netlink.Message{
			Header: netlink.Header{Type: unix.RTM_GETRULE, Flags: netlink.Request | netlink.Dump}, Data: request,
		})
		if err != nil {
			if family == unix.AF_INET6 {
				continue // a kernel without IPv6
			}
			return true
		}
		for _, m := range messages {
			if len(m.Data) < unix.SizeofRtMsg {
				continue
			}
			mark := attribute(m.Data[unix.SizeofRtMsg:], unix.FRA_FWMARK)
			mask := attribute(m.Data[unix.SizeofRtMsg:], unix.FRA_FWMASK)
			for _, b := range [][]byte{mark, mask} {
				if len(b) == 4 && binary.NativeEndian.Uint32(b) != 0 {
					return true
				}
			}
		}
	}
	return false
}
