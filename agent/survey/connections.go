package survey

import (
	"maps"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// mostSeen is how many management connections are followed, of each port, and mostFrom how many of them from one
// address: anybody who reaches the port can open some, and nobody needs more to be known as logged in.
const (
	mostSeen = 4096
	mostFrom = 16
)

// managing returns the established connections to a management port: those that were seen before, and of the others
// as many as may be followed.
func (h *Host) managing(port uint16, seen map[Connection]time.Time) ([]Connection, error) {
	var known, others []Connection
	from := make(map[netip.Addr]int)
	err := query{protocol: unix.IPPROTO_TCP, states: stateEstablished, ports: []uint16{port}}.list(func(s Live) bool {
		peer := s.Remote.Addr()
		if _, before := seen[s.Connection]; before {
			known = append(known, s.Connection)
			from[peer]++
		} else if len(others) < mostSeen && from[peer] < mostFrom {
			others = append(others, s.Connection)
			from[peer]++
		}
		return true
	})
	return append(known, others[:min(len(others), max(0, mostSeen-len(known)))]...), err
}

// Established returns the connections to the local TCP ports that are true in ports over which data
// may still go, half-closed ones included; at most most of them, so that as many mean that there may
// be more. Port 0 stands for all ports. Those whose handshake is not finished are left out: under a SYN
// flood they are the flood's. So a caller that must miss none asks again a moment later. IPv4
// connections of IPv6 sockets have IPv4 addresses.
func (h *Host) Established(ports map[uint16]bool, most int) ([]Live, error) {
	wanted := slices.DeleteFunc(slices.Sorted(maps.Keys(ports)), func(p uint16) bool { return !ports[p] })
	if len(wanted) == 0 || most <= 0 {
		return nil, nil
	}
	listening, err := listeningPorts()
	if err != nil {
		return nil, err
	}
	if ports[0] {
		wanted = nil
	}
	const states = stateEstablished | stateFinWait1 | stateFinWait2 | stateCloseWait | stateLastAck | stateClosing
	var list []Live
	err = query{protocol: unix.IPPROTO_TCP, states: states, ports: wanted, info: true}.list(func(s Live) bool {
		if ports[0] || ports[s.Local.Port()] {
			s.Outgoing = !listening[s.Local.Port()]
			list = append(list, s)
		}
		return len(list) < most
	})
	return list, err
}

// listeningPorts returns the local TCP ports that something listens on.
func listeningPorts() (map[uint16]bool, error) {
	ports := make(map[uint16]bool)
	err := query{protocol: unix.IPPROTO_TCP, states: stateListen}.list(func(s Live) bool {
		ports[s.Local.Port()] = true
		return true
	})
	return ports, err
}
