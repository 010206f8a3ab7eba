package survey

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"ctguard/policy"
)

// Services returns the safe traffic of this host: every port that a TCP socket listens on or that a
// UDP socket is bound to, except on loopback only, and echo and multicast. A UDP port of the
// ephemeral range is left out: what is bound there asks questions, it doesn't answer them.
func (h *Host) Services() ([]policy.Selector, error) {
	low, high, err := h.ephemeral()
	if err != nil {
		return nil, err
	}
	found := make(map[policy.Selector]bool)
	add := func(p policy.Protocol) func(Live) bool {
		return func(s Live) bool {
			port := s.Local.Port()
			if !s.Local.Addr().IsLoopback() && port != 0 && (p != policy.UDP || port < low || port > high) {
				found[policy.Selector{Protocol: p, Port: port}] = true
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
	services := make([]policy.Selector, 0, len(found)+2)
	for s := range found {
		services = append(services, s)
	}
	slices.SortFunc(services, func(a, b policy.Selector) int {
		if a.Protocol != b.Protocol {
			return int(a.Protocol[0]) - int(b.Protocol[0])
		}
		return int(a.Port) - int(b.Port)
	})
	return append(services, policy.Selector{Protocol: policy.ICMP}, policy.Selector{Group: true}), nil
}

// ephemeral returns the first and last port that the kernel gives to sockets that ask for none.
func (h *Host) ephemeral() (low, high uint16, err error) {
	text, err := os.ReadFile(filepath.Join(h.proc, "sys/net/ipv4/ip_local_port_range"))
	if err == nil {
		_, err = fmt.Sscan(string(text), &low, &high)
	}
	if err != nil {
		return 0, 0, fmt.Errorf("read ephemeral ports: %w", err)
	}
	return low, high, nil
}
