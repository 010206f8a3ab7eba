package survey

import (
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"ctguard/agent/procfile"
	"ctguard/policy"
)

// hiddenAddress returns an address of this host that the routing table "local" does not have though it is in use, as
// those in a VRF: rules that ask whether a packet is for this host (fib daddr type local) are told that it is not. It
// is invalid if there is none, or nobody knows.
func (h *Host) hiddenAddress() netip.Addr {
	own, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return netip.Addr{}
	}
	routes, err := localRoutes()
	if err != nil {
		return netip.Addr{}
	}
	for _, one := range own {
		addr, _ := netip.AddrFromSlice(one.IP)
		addr = addr.Unmap()
		has := func(p netip.Prefix) bool { return p.Contains(addr) }
		if addr.IsLinkLocalUnicast() || one.Flags&notYet != 0 || slices.ContainsFunc(routes, has) {
			continue
		}
		// Without a link IPv6 has no route to it yet.
		if link, err := net.InterfaceByIndex(one.LinkIndex); err == nil && link.Flags&net.FlagRunning != 0 {
			return addr
		}
	}
	return netip.Addr{}
}

// notYet are the flags of an address that is not in use.
const notYet = unix.IFA_F_TENTATIVE | unix.IFA_F_DADFAILED

// inVRF is why something stays as it is on a host with such an address.
func inVRF(hidden netip.Addr) string {
	return fmt.Sprintf("it may be asked at an address that rules do not know as this host's, as in a VRF: %s", hidden)
}

// hiddenServices returns what says why a service must stay tracked because it may be asked at such an address: its
// questions would be tracked there, and its answers not. A socket is asked there if it is bound to a device, or if
// the protocol's sockets serve every VRF.
func (h *Host) hiddenServices() func(policy.Selector) string {
	hidden := h.hiddenAddress()
	if !hidden.IsValid() {
		return func(policy.Selector) string { return "" }
	}
	bound := make(map[policy.Selector]bool)
	everywhere := make(map[policy.Protocol]bool)
	for _, one := range []struct {
		policy.Protocol
		query
	}{
		{policy.TCP, query{protocol: unix.IPPROTO_TCP, states: stateListen}},
		{policy.UDP, query{protocol: unix.IPPROTO_UDP, states: stateClose}},
	} {
		accept, err := procfile.Read(filepath.Join(h.proc, "sys/net/ipv4", string(one.Protocol)+"_l3mdev_accept"))
		everywhere[one.Protocol] = err != nil || strings.TrimSpace(string(accept)) != "0"
		err = one.list(func(s Live) bool {
			if s.Device != 0 {
				bound[policy.Selector{Protocol: one.Protocol, Port: s.Local.Port()}] = true
			}
			return true
		})
		everywhere[one.Protocol] = everywhere[one.Protocol] || err != nil
	}
	return func(s policy.Selector) string {
		if s.Group {
			return ""
		}
		asked := everywhere[s.Protocol] || s.Whole() || s.Protocol == policy.ICMP
		first, last := s.Ports()
		for one := range bound {
			asked = asked || one.Protocol == s.Protocol && first <= one.Port && one.Port <= last
		}
		if !asked {
			return ""
		}
		return inVRF(hidden)
	}
}
