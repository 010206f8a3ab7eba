package survey

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/mdlayher/netlink"
	rtnetlink "github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"ctguard/agent/procfile"
	"ctguard/policy"
)

// Whole families.
var everywhere = []netip.Prefix{anyIPv4, anyIPv6}

// local returns what is this host's own: its addresses, and the prefixes that its routing table takes as if they were.
func (h *Host) local() ([]netip.Prefix, error) {
	list, err := h.locals()
	if err == nil {
		return list, nil
	}
	own, err := h.Own() // an old kernel, which is not asked for one table of routes alone
	for _, addr := range own {
		list = append(list, netip.PrefixFrom(addr, addr.BitLen()))
	}
	return list, err
}

// inside returns the networks that this host forwards for, as its profile says.
func (s *Surveyor) inside() ([]netip.Prefix, error) {
	switch s.config.Policy.Profile {
	case policy.Auto:
		return s.host.Inside()
	case policy.NATGateway:
		return everywhere, nil
	case policy.Server:
	}
	return nil, nil
}

// Inside returns the networks whose hosts this one masquerades, or of whose packets it translates the source to
// addresses of its own. A rule that names them says which; of one that names an uplink they are all networks that are
// routed by way of other interfaces, and of one that can't be read, those that the default route does not lead to.
// Their IPv6 networks are inside with them, translated or not. A router without such a rule has no inside: both sides
// are other people's. Nothing is inside of a host that does not forward.
func (h *Host) Inside() ([]netip.Prefix, error) {
	found, err := h.rewrites()
	if err != nil {
		return nil, err
	}
	four, six := h.switched("ipv4/ip_forward"), h.switched("ipv6/conf/all/forwarding")
	if !four && !six {
		return nil, nil
	}
	var named []netip.Prefix
	uplinks := make(map[string]bool)
	legacy := h.tablesInUse().file("nat") != ""
	some, all := legacy, legacy
	for _, rule := range found.sources {
		switch {
		case !rule.hides || rule.never || rule.srcLocal || rule.out == loopback:
		case rule.src.IsValid() && rule.src.Bits() > 0:
			some, named = true, append(named, rule.src.Masked())
		default:
			some, all = true, true
			for _, device := range append(rule.outs, rule.out) {
				uplinks[device] = true
			}
		}
	}
	if !some {
		return nil, nil
	}
	for _, far := range []string{"203.0.113.1", "2001:db8::1"} { // see [Host.Gateways]
		if device := deviceTo(netip.MustParseAddr(far)); device != "" {
			uplinks[device] = true
		}
	}
	devices, err := net.Interfaces()
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	var list []netip.Prefix
	for _, device := range devices {
		if device.Flags&net.FlagLoopback != 0 || uplinks[device.Name] {
			continue
		}
		routes, err := routesBy(device.Index)
		if err != nil {
			return nil, err
		}
		meant := namedOf(routes, named, all)
		for _, p := range slices.Concat(meant, routes) {
			if is4 := p.Addr().Is4(); is4 && four && slices.Contains(meant, p) || !is4 && six && (all || len(meant) > 0) {
				list = append(list, p)
			}
		}
	}
	return outermost(list), nil
}

// outermost sorts prefixes and leaves out what lies within another one.
func outermost(list []netip.Prefix) (kept []netip.Prefix) {
	slices.SortFunc(list, netip.Prefix.Compare)
	for _, p := range list {
		if n := len(kept); n == 0 || !kept[n-1].Overlaps(p) {
			kept = append(kept, p)
		}
	}
	return kept
}

// namedOf returns the IPv4 networks among routes that rules name, or the part of them that rules name; all of them
// where a rule names none.
func namedOf(routes, named []netip.Prefix, all bool) (list []netip.Prefix) {
	for _, p := range routes {
		if all && p.Addr().Is4() {
			list = append(list, p)
			continue
		}
		for _, n := range named {
			if n.Overlaps(p) && n.Bits() < p.Bits() {
				list = append(list, p)
			} else if n.Overlaps(p) {
				list = append(list, n)
			}
		}
	}
	return list
}

// switched says whether a setting of this namespace is on.
func (h *Host) switched(name string) bool {
	text, err := procfile.Read(h.proc + "/sys/net/" + name)
	return err == nil && strings.TrimSpace(string(text)) != "0"
}

// routesBy returns the networks that are reached by way of an interface, by the main table: the kernel is asked for
// that interface alone, because a router may have a million other routes.
func routesBy(index int) ([]netip.Prefix, error) {
	conn, err := netlink.Dial(unix.NETLINK_ROUTE, nil)
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	defer conn.Close()
	if err := conn.SetOption(netlink.GetStrictCheck, true); err != nil {
		return connectedTo(index) // before Linux 4.20
	}
	var list []netip.Prefix
	for _, family := range []byte{unix.AF_INET, unix.AF_INET6} {
		request := make([]byte, unix.SizeofRtMsg, unix.SizeofRtMsg+8)
		request[0], request[4] = family, unix.RT_TABLE_MAIN
		request = binary.NativeEndian.AppendUint16(request, 8)
		request = binary.NativeEndian.AppendUint16(request, unix.RTA_OIF)
		request = binary.NativeEndian.AppendUint32(request, uint32(index))
		messages, err := conn.Execute(netlink.Message{
			Header: netlink.Header{Type: unix.RTM_GETROUTE, Flags: netlink.Request | netlink.Dump}, Data: request,
		})
		if err != nil {
			return nil, fmt.Errorf("list routes: %w", err)
		}
		for _, m := range messages {
			if len(m.Data) < unix.SizeofRtMsg || m.Data[7] != unix.RTN_UNICAST {
				continue
			}
			addr, ok := netip.AddrFromSlice(attribute(m.Data[unix.SizeofRtMsg:], unix.RTA_DST))
			if p := netip.PrefixFrom(addr, int(m.Data[1])); ok && forHosts(p) {
				list = append(list, p)
			}
		}
	}
	return list, nil
}

// connectedTo returns the networks that an interface has addresses of.
func connectedTo(index int) (list []netip.Prefix, err error) {
	link, err := rtnetlink.LinkByIndex(index)
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	addrs, err := rtnetlink.AddrList(link, rtnetlink.FAMILY_ALL)
	for _, a := range addrs {
		addr, ok := netip.AddrFromSlice(a.IP)
		ones, _ := a.Mask.Size()
		if p := netip.PrefixFrom(addr.Unmap(), ones).Masked(); ok && forHosts(p) {
			list = append(list, p)
		}
	}
	return list, err
}

// forHosts says whether a prefix is a network of hosts that are forwarded for, and neither the whole world.
func forHosts(p netip.Prefix) bool {
	return p.IsValid() && p.Bits() > 0 && !p.Addr().IsLinkLocalUnicast() && !p.Addr().IsMulticast()
}
