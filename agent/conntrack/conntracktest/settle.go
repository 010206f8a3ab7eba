package conntracktest

import (
	"fmt"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Settle waits until the kernel uses every IPv6 address of the calling thread's namespace: it does so in its own time,
// after the command that gave it one has ended, and after it has seen the link's carrier. The links are up.
func Settle() error {
	addresses, err := netlink.AddrList(nil, netlink.FAMILY_V6)
	if err != nil {
		return fmt.Errorf("list addresses: %w", err)
	}
	deadline := time.Now().Add(10 * time.Second)
	for _, a := range addresses {
		for a.IP.IsGlobalUnicast() {
			// Until then the way to it is the link's, as for its neighbours.
			routes, err := netlink.RouteGet(a.IP)
			if err == nil && len(routes) > 0 && routes[0].Type == unix.RTN_LOCAL {
				break
			}
			if time.Now().After(deadline) {
				return fmt.Errorf("%s is not used: %v (%w)", a.IP, routes, err)
			}
			time.Sleep(time.Millisecond)
		}
	}
	return nil
}
