package host

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/vishvananda/netlink"
)

// Host reads what there is to know about this host. Roots are parameters for tests.
type Host struct {
	proc string // "/proc"
	etc  string // "/etc"
	sys  string // "/sys"
}

// New returns the host whose proc, sys and etc file systems are below root, which is "/" except in
// tests.
func New(root string) *Host {
	return &Host{filepath.Join(root, "proc"), filepath.Join(root, "etc"), filepath.Join(root, "sys")}
}

// Own returns the addresses of this host.
func (h *Host) Own() ([]netip.Addr, error) {
	list, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	own := make([]netip.Addr, 0, len(list))
	for _, a := range list {
		if addr, ok := netip.AddrFromSlice(a.IP); ok {
			own = append(own, addr.Unmap())
		}
	}
	return own, nil
}

// Gateways returns the next hops of this host's default routes.
func (h *Host) Gateways() ([]netip.Addr, error) {
	routes, err := netlink.RouteList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	var gateways []netip.Addr
	add := func(ip net.IP) {
		if addr, ok := netip.AddrFromSlice(ip); ok {
			gateways = append(gateways, addr.Unmap())
		}
	}
	for _, r := range routes {
		if r.Dst != nil {
			if ones, _ := r.Dst.Mask.Size(); ones != 0 {
				continue
			}
		}
		add(r.Gw)
		for _, hop := range r.MultiPath {
			add(hop.Gw)
		}
	}
	return gateways, nil
}

// Resolvers returns the name servers of resolv.conf(5); none where there is no such file.
func (h *Host) Resolvers() ([]netip.Addr, error) {
	f, err := os.Open(filepath.Join(h.etc, "resolv.conf"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read resolvers: %w", err)
	}
	defer f.Close()
	var resolvers []netip.Addr
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) >= 2 && fields[0] == "nameserver" {
			if addr, err := netip.ParseAddr(fields[1]); err == nil {
				resolvers = append(resolvers, addr.Unmap().WithZone(""))
			}
		}
	}
	return resolvers, lines.Err()
}
