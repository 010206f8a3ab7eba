package survey

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

// Host reads what there is to know about this host. Roots are parameters for tests. It remembers the
// rules of one network namespace and listens for changes there until Close, so it is for that one.
type Host struct {
	proc string // "/proc"
	etc  string // "/etc"
	sys  string // "/sys"
	run  string // "/run"
	read ruleCache
}

// New returns the host whose proc, etc, sys and run directories are below root, which is "/" except in
// tests.
func New(root string) *Host {
	return &Host{
		proc: filepath.Join(root, "proc"), etc: filepath.Join(root, "etc"),
		sys: filepath.Join(root, "sys"), run: filepath.Join(root, "run"),
		read: ruleCache{rest: rest},
	}
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

// Gateways returns the next hops towards the world: those of the routes to an address of each
// family that nobody has (RFC 5737, RFC 3849). Asking for one route costs the same with a million
// routes as with one.
func (h *Host) Gateways() []netip.Addr {
	var gateways []netip.Addr
	for _, far := range []string{"203.0.113.1", "2001:db8::1"} {
		routes, err := netlink.RouteGet(net.ParseIP(far))
		if err != nil {
			continue // no route there is the ordinary answer of a host without that family
		}
		for _, r := range routes {
			if addr, ok := netip.AddrFromSlice(r.Gw); ok {
				gateways = append(gateways, addr.Unmap())
			}
		}
	}
	return gateways
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
