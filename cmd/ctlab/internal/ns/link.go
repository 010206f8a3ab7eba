package ns

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// End is one end of a veth pair.
type End struct {
	NS    *Namespace
	Name  string
	MAC   net.HardwareAddr
	Addrs []netip.Prefix
}

// Pair makes a veth pair between two namespaces and brings both ends up.
func Pair(a, b End) error {
	err := a.NS.Do(func() error {
		veth := &netlink.Veth{
			LinkAttrs:        netlink.LinkAttrs{Name: a.Name, HardwareAddr: a.MAC, TxQLen: 1000},
			PeerName:         b.Name,
			PeerHardwareAddr: b.MAC,
			PeerNamespace:    netlink.NsFd(b.NS.FD()),
		}
		return netlink.LinkAdd(veth)
	})
	if err != nil {
		return fmt.Errorf("make veth %s/%s to %s/%s: %w", a.NS.Name(), a.Name, b.NS.Name(), b.Name, err)
	}
	for _, e := range []End{a, b} {
		if err := e.NS.Do(e.up); err != nil {
			return fmt.Errorf("bring up %s in %s: %w", e.Name, e.NS.Name(), err)
		}
	}
	return nil
}

func (e End) up() error {
	for _, name := range []string{"lo", e.Name} {
		link, err := netlink.LinkByName(name)
		if err != nil {
			return fmt.Errorf("find %s: %w", name, err)
		}
		if err := netlink.LinkSetUp(link); err != nil {
			return fmt.Errorf("set %s up: %w", name, err)
		}
		if name == "lo" {
			continue
		}
		for _, p := range e.Addrs {
			// Without duplicate address detection an IPv6 address can be used at once.
			addr := &netlink.Addr{IPNet: IPNet(p), Flags: unix.IFA_F_NODAD}
			if err := netlink.AddrAdd(link, addr); err != nil {
				return fmt.Errorf("add address %s: %w", p, err)
			}
		}
	}
	return nil
}

// Route is a route through a gateway on a link, with the source address that
// local sockets take for it.
type Route struct {
	Dst netip.Prefix
	Via netip.Addr
	Src netip.Addr
	Dev string
	// GatewayMAC, if set, is written as a permanent neighbour, so that a
	// gateway whose kernel does not know its own address can be reached.
	GatewayMAC net.HardwareAddr
}

// AddRoute adds a route to the namespace.
func (n *Namespace) AddRoute(r Route) error {
	err := n.Do(func() error {
		link, err := netlink.LinkByName(r.Dev)
		if err != nil {
			return fmt.Errorf("find %s: %w", r.Dev, err)
		}
		if r.GatewayMAC != nil {
			neigh := &netlink.Neigh{
				LinkIndex: link.Attrs().Index, State: netlink.NUD_PERMANENT,
				IP: r.Via.AsSlice(), HardwareAddr: r.GatewayMAC,
			}
			if err := netlink.NeighSet(neigh); err != nil {
				return fmt.Errorf("set neighbour %s: %w", r.Via, err)
			}
		}
		route := &netlink.Route{
			LinkIndex: link.Attrs().Index, Dst: IPNet(r.Dst), Gw: r.Via.AsSlice(), Flags: int(netlink.FLAG_ONLINK),
		}
		if r.Src.IsValid() {
			route.Src = r.Src.AsSlice()
		}
		return netlink.RouteAdd(route)
	})
	if err != nil {
		return fmt.Errorf("add route %s in %s: %w", r.Dst, n.name, err)
	}
	return nil
}

// Sysctl writes settings such as "net.ipv4.ip_forward" in the namespace.
func (n *Namespace) Sysctl(values map[string]string) error {
	return n.Do(func() error {
		for key, value := range values {
			path := filepath.Join("/proc/sys", strings.ReplaceAll(key, ".", "/"))
			if err := os.WriteFile(path, []byte(value), 0); err != nil {
				return fmt.Errorf("set %s in %s: %w", key, n.name, err)
			}
		}
		return nil
	})
}

// IPNet converts a prefix, keeping its host bits.
func IPNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
