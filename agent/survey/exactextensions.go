package survey

import (
	"encoding/binary"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// match reads the matches of iptables that go with a translation.
func (m *exactReader) match(name string, revision uint32, info []byte) {
	switch name {
	case "comment":
	case "tcp", "udp":
		m.portMatch(info, map[string]int{"tcp": 11, "udp": 8}[name], name == "tcp")
	case "multiport":
		m.portsMatch(info)
	case "addrtype":
		// struct xt_addrtype_info_v1: sources, destinations, flags.
		if revision != 1 || len(info) < 8 || binary.NativeEndian.Uint32(info[4:]) != 0 {
			m.vague()
			return
		}
		from, to := binary.NativeEndian.Uint16(info), binary.NativeEndian.Uint16(info[2:])
		const local = 1 << unix.RTN_LOCAL
		m.local, m.srcLocal = m.local || to == local, m.srcLocal || from == local
		m.exact = m.exact && (from == 0 || from == local) && (to == 0 || to == local)
	case "conntrack", "state":
		// Of untracked packets only the state is known: conntrack_mt in net/netfilter/xt_conntrack.c.
		asked, ok := readStateMatch(name, revision, info)
		if !ok || asked.others {
			m.vague()
		}
		if m.tracked = m.tracked || asked.others; ok && asked.states != 0 {
			m.inStates(asked.states, asked.inverted)
		}
	default:
		m.vague()
	}
}

// portMatch reads struct xt_tcp or xt_udp.
func (m *exactReader) portMatch(info []byte, inversions int, tcp bool) {
	if len(info) <= inversions {
		m.vague()
		return
	}
	at := func(i int) uint16 { return binary.NativeEndian.Uint16(info[i:]) }
	const flagsAt = 8 // struct xt_tcp: option, flags' mask, flags compared
	byFlags := tcp && (info[flagsAt] != 0 || info[flagsAt+1] != 0)
	if info[inversions] != 0 || at(0) != 0 || at(2) != 1<<16-1 || byFlags {
		m.vague()
	}
	if info[inversions] == 0 {
		m.flowMatch = m.and(flowMatch{exact: true, ports: []ports{{at(4), at(6)}}})
	}
}

// portsMatch reads struct xt_multiport_v1: a list of destination ports and ranges of them, and nothing else.
func (m *exactReader) portsMatch(info []byte) {
	const destinations = 1
	var list reader
	if list.multiport(info); list.ports == nil || info[0] != destinations {
		m.vague()
		return
	}
	m.flowMatch = m.and(flowMatch{exact: true, ports: list.ports})
}

// target reads what a rule of iptables does.
func (m *exactReader) target(name string, revision uint32, info []byte) {
	if slices.Contains(harmless, name) && name != "REJECT" && name != "NFQUEUE" && name != "STEAL" && name != "TARPIT" ||
		name == "MARK" || name == "CONNMARK" {
		return
	}
	if name == "REJECT" {
		m.verdict, m.refuses = diverted, true
		return
	}
	m.verdict, m.hides = scattered, name == "MASQUERADE" || name == "SNAT"
	const plain = 1<<0 | 1<<1
	flags := -1
	if m.at.table.family == nftables.TableFamilyIPv4 && revision == 0 {
		if len(info) >= 8 {
			flags = int(binary.NativeEndian.Uint32(info[4:]))
		}
	} else if len(info) >= 4 {
		flags = int(binary.NativeEndian.Uint32(info))
	}
	if name != "DNAT" || flags < 0 || flags&^plain != 0 {
		return
	}
	old := reader{ipv4: m.at.table.family == nftables.TableFamilyIPv4}
	e := old.rangeOf(name, revision, info)
	if !e.from.IsValid() || e.from != e.last || !e.keepsPort && (len(e.to) != 1 || e.to[0].first != e.to[0].last) {
		return
	}
	var port uint16
	if !e.keepsPort {
		port = e.to[0].first
	}
	m.to, m.verdict = netip.AddrPortFrom(e.from, port), translated
}
