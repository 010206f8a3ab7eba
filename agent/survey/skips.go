package survey

import (
	"fmt"
	"sync"

	"golang.org/x/sys/unix"

	"ctguard/policy"
)

// Unsupported returns the steps that what this host does forbids, and why.
//
// Closed ports can be told from open ones only where every packet for this host goes to the socket
// that it is addressed to: answers to translated flows, and what IPVS or tproxy take, go
// elsewhere without one.
func (h *Host) Unsupported() (map[policy.StepName]string, error) {
	found, err := h.rewrites()
	if err != nil {
		return nil, err
	}
	unsupported := make(map[policy.StepName]string)
	switch {
	case len(found.nat) > 0:
		unsupported[policy.ClosedPorts] = "NAT on this host: " + found.nat[0].where
	case found.proxied != "":
		unsupported[policy.ClosedPorts] = "tproxy on this host: " + found.proxied
	case h.balanced().any:
		unsupported[policy.ClosedPorts] = balances
	}
	if hidden := h.hiddenAddress(); hidden.IsValid() && unsupported[policy.ClosedPorts] == "" {
		// A socket that is bound to the VRF is not found before the packet is in it.
		unsupported[policy.ClosedPorts] = inVRF(hidden)
	}
	if h.balanced().any {
		// Unless it is told to (net.ipv4.vs.conntrack) IPVS tracks nothing of what it forwards, so that conntrack calls
		// every answer from behind it invalid.
		unsupported[policy.DropInvalid] = balances
	}
	return unsupported, nil
}

// Unproxied returns those of listeners that can't be put behind synproxy, and why: ports that are
// redirected elsewhere or that others are redirected to, ports whose connections are marked or watched by a conntrack
// helper, and ports whose live connections
// announced another window scale than [Host.Handshake] says, because their listener asks for a
// buffer of its own (SO_RCVBUF). A listener without connections can't be told from others.
func (h *Host) Unproxied(listeners []policy.Selector) (map[policy.Selector]string, error) {
	found, err := h.rewrites()
	if err != nil {
		return nil, err
	}
	scales, err := h.otherScales(listeners)
	if err != nil {
		return nil, err
	}
	byMark, here, ipvs := sync.OnceValue(routesByMark), &addresses{read: h.locals}, h.balanced()
	hidden := h.hiddenServices()
	unproxied := make(map[policy.Selector]string)
	for _, s := range listeners {
		if reason := scales[s.Port]; reason != "" {
			unproxied[s] = reason
		}
		if module := h.helper(s); module != "" {
			unproxied[s] = "a conntrack helper watches it: " + module
		}
		if need := found.needOf(s, false, byMark); need != "" {
			unproxied[s] = need
		}
		if ipvs.takes(s) {
			unproxied[s] = balances
		}
		if why := hidden(s); why != "" {
			unproxied[s] = why
		}
		for _, e := range found.nat {
			if e.redirects(s, here) {
				unproxied[s] = "NAT on this host: " + e.where
				break
			}
		}
	}
	return unproxied, nil
}

// mostSampled is how many connections are asked for their window scale: the kernel locks each socket
// for the answer, so asking a hundred thousand would be felt. They come in random order.
const mostSampled = 4096

// otherScales returns the ports of listeners where a live connection announced a window scale that
// this host's settings don't make, and what it was.
func (h *Host) otherScales(listeners []policy.Selector) (map[uint16]string, error) {
	usual, err := h.Handshake()
	if err != nil {
		return nil, err
	}
	ports := make(map[uint16]bool)
	q := query{protocol: unix.IPPROTO_TCP, states: stateEstablished, info: true}
	for _, s := range listeners {
		if !ports[s.Port] {
			ports[s.Port] = true
			q.ports = append(q.ports, s.Port)
		}
	}
	other := make(map[uint16]string)
	if len(ports) == 0 {
		return other, nil
	}
	seen := 0
	err = q.list(func(c Live) bool {
		if port := c.Local.Port(); ports[port] && c.Scales.Agreed && c.Scales.Local != usual.WindowScale {
			other[port] = fmt.Sprintf("its connections announce window scale %d, this host's settings make %d",
				c.Scales.Local, usual.WindowScale)
		}
		seen++
		return seen < mostSampled
	})
	return other, err
}
