package survey

import (
	"cmp"
	"fmt"
	"maps"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"ctguard/agent/procfile"
	"ctguard/policy"
)

// mostServices is how many ports of this host are looked at: each costs rules, counters and a trial, and any user
// may open thousands.
const mostServices = 256

// ErrManyServices says that some of the services are left out. They stay tracked.
var ErrManyServices = fmt.Errorf("more than %d ports are listened on: the others stay tracked and without synproxy",
	mostServices)

// Services returns the safe traffic of this host: every port that a TCP socket listens on or that a
// UDP socket is bound to, except on loopback only, and echo and multicast. A UDP port of the
// ephemeral range is left out: what is bound there asks questions, it doesn't answer them. Of too many ports it
// returns those that come first, and [ErrManyServices].
func (h *Host) Services() ([]policy.Selector, error) {
	low, high, err := h.ephemeral()
	if err != nil {
		return nil, err
	}
	found := make(map[policy.Selector]uint32)
	add := func(p policy.Protocol) func(Live) bool {
		return func(s Live) bool {
			port := s.Local.Port()
			if s.Local.Addr().IsLoopback() || port == 0 || (p == policy.UDP && port >= low && port <= high) {
				return true
			}
			one := policy.Selector{Protocol: p, Port: port}
			if uid, known := found[one]; !known || s.UID < uid {
				found[one] = s.UID
			}
			return true
		}
	}
	if err := (query{protocol: unix.IPPROTO_TCP, states: stateListen}).list(add(policy.TCP)); err != nil {
		return nil, err
	}
	if err := (query{protocol: unix.IPPROTO_UDP, states: stateClose}).list(add(policy.UDP)); err != nil {
		return nil, err
	}
	services, err := firstServices(found, mostServices)
	return append(services, policy.Selector{Protocol: policy.ICMP}, policy.Selector{Group: true}), err
}

// firstServices returns the services, whose owners are known, in order; of more than most of them those of root and
// below port 1024 first, where others can't be, and then every owner's first, every owner's second and so on: however
// many ports one user opens, those of all others stay.
func firstServices(found map[policy.Selector]uint32, most int) ([]policy.Selector, error) {
	services := slices.SortedFunc(maps.Keys(found), byProtocol)
	if len(services) <= most {
		return services, nil
	}
	rank := make(map[policy.Selector]int)
	next := make(map[uint32]int)
	for _, one := range slices.SortedFunc(maps.Keys(found), byPort) {
		if owner := found[one]; owner != 0 && one.Port >= 1024 {
			next[owner]++
			rank[one] = next[owner]
		}
	}
	slices.SortFunc(services, func(a, b policy.Selector) int { return cmp.Or(rank[a]-rank[b], byPort(a, b)) })
	services = services[:most]
	slices.SortFunc(services, byProtocol)
	return services, ErrManyServices
}

// byProtocol and byPort are orders of services.
func byProtocol(a, b policy.Selector) int {
	return cmp.Or(cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.Port, b.Port))
}

func byPort(a, b policy.Selector) int {
	return cmp.Or(cmp.Compare(a.Port, b.Port), cmp.Compare(a.Protocol, b.Protocol))
}

// ephemeral returns the first and last port that the kernel gives to sockets that ask for none.
func (h *Host) ephemeral() (low, high uint16, err error) {
	text, err := procfile.Read(filepath.Join(h.proc, "sys/net/ipv4/ip_local_port_range"))
	if err == nil {
		_, err = fmt.Sscan(string(text), &low, &high)
	}
	if err != nil {
		return 0, 0, fmt.Errorf("read ephemeral ports: %w", err)
	}
	return low, high, nil
}
