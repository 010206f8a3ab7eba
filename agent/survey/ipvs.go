package survey

import (
	"strconv"
	"strings"

	"ctguard/agent/procfile"
	"ctguard/policy"
)

// balances is why something stays as it is on a host that balances.
const balances = "IPVS has services on this host (ip_vs)"

// balancer is what IPVS does on a host.
type balancer struct {
	any   bool
	all   bool // it takes packets by their mark, or of every port
	ports map[policy.Selector]bool
}

// balanced reads IPVS's services: lines behind the three of the header in ip_vs that name no backend, see
// ip_vs_info_seq_show in net/netfilter/ipvs/ip_vs_ctl.c. procfs lists backends instead, and a service without one
// takes packets too.
func (h *Host) balanced() balancer {
	text, err := procfile.Read(h.net("ip_vs"))
	if err != nil {
		return balancer{}
	}
	b := balancer{ports: make(map[policy.Selector]bool)}
	lines := strings.Split(string(text), "\n")
	for _, line := range lines[min(3, len(lines)):] {
		fields := strings.Fields(line)
		if len(fields) < 2 || fields[0] == "->" {
			continue
		}
		b.any = true
		port, err := strconv.ParseUint(fields[1][strings.LastIndex(fields[1], ":")+1:], 16, 16)
		switch {
		case err != nil || port == 0 || fields[0] == "FWM":
			b.all = true
		case fields[0] == "TCP":
			b.ports[policy.Selector{Protocol: policy.TCP, Port: uint16(port)}] = true
		case fields[0] == "UDP":
			b.ports[policy.Selector{Protocol: policy.UDP, Port: uint16(port)}] = true
		}
	}
	return b
}

// takes says whether packets of a selector may be IPVS's. To rules they look like those of a service of this host.
func (b balancer) takes(s policy.Selector) bool {
	if !b.any || s.Group || s.Protocol == policy.ICMP {
		return false
	}
	if b.all || s.Whole() {
		return true
	}
	for port := range b.ports {
		if first, last := s.Ports(); s.Protocol == port.Protocol && first <= port.Port && port.Port <= last {
			return true
		}
	}
	return false
}
