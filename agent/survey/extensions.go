package survey

import (
	"encoding/binary"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
)

// extension reads an expression that carries a match or target of iptables.
func extension(b []byte) (name string, revision uint32, info []byte) {
	name, info = text(attribute(b, unix.NFTA_TARGET_NAME)), attribute(b, unix.NFTA_TARGET_INFO)
	return name, number(b, unix.NFTA_TARGET_REV), info
}

// harmless are targets of iptables that leave addresses, ports, marks and connections as they are, those that
// ipt_NETFLOW and xtables-addons bring among them.
var harmless = []string{
	"ACCOUNT", "AUDIT", "CHAOS", "CHECKSUM", "CLASSIFY", "DELUDE", "DSCP", "ECN", "HL", "IDLETIMER", "LED", "LOG",
	"NETFLOW", "NFLOG", "NFQUEUE", "NOTRACK", "RATEEST", "REJECT", "SECMARK", "SET", "STEAL", "TARPIT", "TCPMSS",
	"TCPOPTSTRIP", "TEE", "TOS", "TRACE", "TTL", "ULOG",
}

// target is what a rule of iptables does. The layouts are those of include/uapi/linux/netfilter/xt_*.h.
func (m *reader) target(name string, revision uint32, info []byte) {
	switch name {
	case "REJECT", "TARPIT", "STEAL", "CHAOS", "DELUDE":
		m.judges(drops)
	case "DNAT", "REDIRECT":
		m.add(m.rangeOf(name, revision, info))
	case "SNAT", "NETMAP":
		m.add(effect{kind: translates, keepsPort: true})
	case "MASQUERADE":
		m.add(effect{kind: translates, masquerade: true})
	case "MARK", "HMARK":
		m.does(marks)
	case "TPROXY":
		m.does(proxies)
	case "SYNPROXY":
		m.does(synproxies)
	case "CONNMARK":
		// struct xt_connmark_tginfo1: three masks, then the mode; tginfo2 has a shift before the mode.
		at := 12
		if revision >= 2 {
			at = 14
		}
		m.saves(info, at, writesMark, readsMark)
	case "CONNSECMARK":
		m.saves(info, 0, writesSecurity, readsSecurity)
	case "CT":
		m.template(info)
	default:
		if !slices.Contains(harmless, name) {
			m.does(unknown)
		}
	}
}

// saves tells a target that writes to the connection from one that reads from it, by its mode.
func (m *reader) saves(info []byte, at int, writes, reads kind) {
	const restore = 2 // XT_CONNMARK_RESTORE, CONNSECMARK_RESTORE
	if len(info) > at && info[at] == restore {
		m.does(reads)
	} else {
		m.does(writes)
	}
}

// template reads struct xt_ct_target_info: flags, zone, events, expected events, helper and, from revision 1 on,
// timeout.
func (m *reader) template(info []byte) {
	const (
		notrack      = 1 << 0
		zoneFromMark = 1 << 4
		helperAt     = 12
		timeoutAt    = 28
	)
	if len(info) < timeoutAt {
		m.does(unknown)
		return
	}
	flags, zone := binary.NativeEndian.Uint16(info), binary.NativeEndian.Uint16(info[2:])
	if flags&notrack != 0 {
		return
	}
	if zone != 0 || flags&zoneFromMark != 0 {
		m.does(setsZone)
	}
	if binary.NativeEndian.Uint32(info[4:]) != 0 || binary.NativeEndian.Uint32(info[8:]) != 0 {
		m.does(setsEvents)
	}
	if info[helperAt] != 0 {
		m.does(setsHelper)
	}
	if len(info) >= timeoutAt+32 && info[timeoutAt] != 0 {
		m.does(setsTimeout)
	}
}

// rangeOf reads where DNAT and REDIRECT send: revision 0 for IPv4 has struct nf_nat_ipv4_multi_range_compat, all
// others struct nf_nat_range or one that begins like it; both in include/uapi/linux/netfilter/nf_nat.h.
func (m *reader) rangeOf(name string, revision uint32, info []byte) effect {
	const (
		addressesGiven = 1 << 0 // NF_NAT_RANGE_MAP_IPS
		portsGiven     = 1 << 1 // NF_NAT_RANGE_PROTO_SPECIFIED
	)
	e := effect{kind: translates}
	var flags uint32
	var from, last, least, most []byte
	switch old := m.ipv4 && revision == 0; {
	case old && len(info) >= 20:
		flags = binary.NativeEndian.Uint32(info[4:])
		from, last, least, most = info[8:12], info[12:16], info[16:18], info[18:20]
	case !old && len(info) >= 40:
		flags = binary.NativeEndian.Uint32(info)
		from, last, least, most = info[4:20], info[20:36], info[36:38], info[38:40]
		if m.ipv4 {
			from, last = from[:4], last[:4]
		}
	default:
		return e
	}
	if flags&portsGiven == 0 {
		e.keepsPort = true
	} else {
		e.to = []ports{{binary.BigEndian.Uint16(least), binary.BigEndian.Uint16(most)}}
	}
	if name == "DNAT" && flags&addressesGiven != 0 {
		e.from, _ = netip.AddrFromSlice(from)
		e.last, _ = netip.AddrFromSlice(last)
	}
	return e
}

// match takes a match of iptables into account. The layouts are those of xt_tcpudp.h, xt_addrtype.h and so on.
func (m *reader) match(name string, revision uint32, info []byte) {
	if name == "conntrack" || name == "state" {
		m.stateMatch(name, revision, info)
	} else {
		m.narrow = true
	}
	switch name {
	case "tcp":
		m.portMatch(info, 11)
		m.flagsMatch(info)
	case "udp":
		m.portMatch(info, 8)
	case "multiport":
		m.multiport(info)
	case "addrtype":
		// struct xt_addrtype_info_v1: sources, destinations, flags.
		const destinationInverted = 1 << 1
		if revision == 1 && len(info) >= 8 && binary.NativeEndian.Uint16(info[2:]) == 1<<unix.RTN_LOCAL &&
			binary.NativeEndian.Uint32(info[4:])&destinationInverted == 0 {
			m.local = true
		}
	case "connmark":
		m.does(readsMark)
	case "connlabel": // struct xt_connlabel_mtinfo: bit, options
		const sets = 1 << 1 // XT_CONNLABEL_OP_SET
		if len(info) >= 4 && binary.NativeEndian.Uint16(info[2:])&sets != 0 {
			m.does(writesLabel)
		} else {
			m.does(readsLabel)
		}
	case "connlimit":
		m.does(limits)
	case "connbytes":
		m.does(measures)
		m.byConnection = true
	case "conntrack", "state", "helper", "cluster":
		m.byConnection = true
	}
}

// portMatch reads struct xt_tcp or xt_udp: source ports, destination ports, and further on what is inverted.
func (m *reader) portMatch(info []byte, inversions int) {
	const sourcesInverted, destinationsInverted = 1 << 0, 1 << 1
	if len(info) <= inversions {
		return
	}
	at := func(i int) uint16 { return binary.NativeEndian.Uint16(info[i:]) }
	if info[inversions]&sourcesInverted == 0 {
		m.constraints = m.and(constraints{sources: []ports{{at(0), at(2)}}})
	}
	if info[inversions]&destinationsInverted == 0 {
		m.constraints = m.and(constraints{ports: []ports{{at(4), at(6)}}})
	}
}

// multiport reads struct xt_multiport_v1: which ports, how many, the ports, which of them begin a range, and whether
// all of it is inverted.
func (m *reader) multiport(info []byte) {
	const most = 15 // XT_MULTI_PORTS
	const sources, destinations = 0, 1
	if len(info) < 2+2*most+most+1 || info[2+3*most] != 0 || int(info[1]) > most {
		return
	}
	list := []ports{}
	for i := 0; i < int(info[1]); i++ {
		r := ports{first: binary.NativeEndian.Uint16(info[2+2*i:])}
		if r.last = r.first; info[2+2*most+i] != 0 && i+1 < int(info[1]) {
			i++
			r.last = binary.NativeEndian.Uint16(info[2+2*i:])
		}
		list = append(list, r)
	}
	switch info[0] {
	case sources:
		m.constraints = m.and(constraints{sources: list})
	case destinations:
		m.constraints = m.and(constraints{ports: list})
	}
}
