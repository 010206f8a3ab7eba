package survey

import (
	"encoding/binary"
	"slices"
	"strings"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// A rule is a list of expressions that load parts of a packet into registers, compare them, and do something.
// reader follows one rule from left to right. What it can't read it takes for a match that lets everything
// through, and for an action that is unknown.
type reader struct {
	rules *ruleset
	at    chainKey
	into  *chain
	constraints
	held [registers]value
	ipv4 bool // the packet is IPv4: fields of its header are where they should be
	ipv6 bool
	opening
}

// registers are 20 of four bytes each; see nft_parse_register in net/netfilter/nf_tables_api.c.
const registers = 20

// value is what is known of a register.
type value struct {
	what   subject
	one    [][]byte // of a constant: it is one of these, from offset on
	offset int
}

// from returns the values that a constant may have, of so many bytes each; nil where that is not known.
func (v value) from(length int) (list [][]byte) {
	if v.what != constant {
		return nil
	}
	for _, b := range v.one {
		if len(b) < v.offset+length {
			return nil
		}
		list = append(list, b[v.offset:v.offset+length])
	}
	return list
}

type subject uint8

const (
	something subject = iota
	theFamily         // NFPROTO_IPV4 or NFPROTO_IPV6
	theProtocol
	thePort
	theSourcePort
	bothPorts     // source and destination, as the first four bytes of the transport header
	theKind       // of the destination address: RTN_LOCAL and so on
	theDevice     // the index of the interface by which the packet comes or leaves
	theDeviceName //
	theState      // of the connection; a mask where that was applied
	theFlags      // of TCP, with or without a mask
	constant      // what an immediate expression wrote, or a map of which all is known
)

// readRule adds what a rule may do to a chain.
func (r *ruleset) readRule(at chainKey, into *chain, expressions []byte) {
	m := reader{rules: r, at: at, into: into}
	m.byConnection = into.sorted
	m.ipv4 = at.table.family == nftables.TableFamilyIPv4
	m.ipv6 = at.table.family == nftables.TableFamilyIPv6
	for _, element := range attributes(expressions) {
		m.expression(attribute(element, unix.NFTA_EXPR_NAME), attribute(element, unix.NFTA_EXPR_DATA))
	}
}

// does adds something that the rule does to the packets that come so far.
func (m *reader) does(what kind) { m.add(effect{kind: what}) }

func (m *reader) add(e effect) {
	e.constraints, e.where = m.constraints, m.at.where()
	m.into.effects = append(m.into.effects, e)
}

// expression takes the next step of a rule.
func (m *reader) expression(name, b []byte) {
	switch text(name) {
	case "reject":
		m.judges(drops)
	case "counter", "limit", "log", "quota", "last", "notrack", "queue", "dup", "fwd":
		// Write no register and need no connection. What a host leaves untracked by itself is its own affair.
	case "flow_offload":
		m.does(offloads)
	case "cmp":
		if register := number(b, unix.NFTA_CMP_SREG); number(b, unix.NFTA_CMP_OP) <= unix.NFT_CMP_GTE {
			data := attribute(attribute(b, unix.NFTA_CMP_DATA), unix.NFTA_DATA_VALUE)
			m.compare(m.register(register), number(b, unix.NFTA_CMP_OP), data)
		}
	case "range":
		if number(b, unix.NFTA_RANGE_OP) == unix.NFT_RANGE_EQ {
			held := m.register(number(b, unix.NFTA_RANGE_SREG))
			m.compare(held, unix.NFT_CMP_GTE, attribute(attribute(b, unix.NFTA_RANGE_FROM_DATA), unix.NFTA_DATA_VALUE))
			m.compare(held, unix.NFT_CMP_LTE, attribute(attribute(b, unix.NFTA_RANGE_TO_DATA), unix.NFTA_DATA_VALUE))
		}
	case "lookup":
		m.lookUp(b)
	case "meta":
		m.meta(b)
	case "payload":
		m.payload(b)
	case "fib":
		m.forget()
		ofDestination := number(b, unix.NFTA_FIB_FLAGS)&unix.NFTA_FIB_F_DADDR != 0
		if number(b, unix.NFTA_FIB_RESULT) == unix.NFT_FIB_RESULT_ADDRTYPE && ofDestination {
			m.load(number(b, unix.NFTA_FIB_DREG), value{what: theKind})
		}
	case "immediate":
		m.immediate(b)
	case "ct":
		m.ofConnection(b)
	case "objref":
		m.object(b)
	case "connlimit":
		m.does(limits)
	case "dynset":
		m.dynamic(b)
	case "nat":
		m.add(m.translation(b))
	case "redir":
		m.add(m.redirection(b))
	case "masq":
		m.add(effect{kind: translates, masquerade: true})
	case "tproxy":
		m.does(proxies)
	case "synproxy":
		m.does(synproxies)
	case "match":
		m.match(extension(b))
	case "target":
		if m.at.table.family != nftables.TableFamilyBridge { // those of ebtables know nothing of connections
			m.target(extension(b))
		}
	case "bitwise":
		m.masked(b)
	case "byteorder", "exthdr", "hash", "inner", "numgen", "osf", "rt", "socket", "tunnel", "xfrm":
		m.forget()
	default:
		m.forget()
		m.does(unknown)
	}
}

// slot is where a register begins: 1 to 4 are of sixteen bytes, those from 8 on of four.
func slot(register uint32) int {
	switch {
	case register >= unix.NFT_REG_1 && register <= unix.NFT_REG_4:
		return int(register) * 4
	case register >= unix.NFT_REG32_00 && register <= unix.NFT_REG32_15:
		return int(register) - 4
	}
	return -1
}

// register says what a register holds.
func (m *reader) register(number uint32) value {
	if s := slot(number); s >= 0 && s < registers {
		return m.held[s]
	}
	return value{}
}

// load notes what a register holds now. What follows it may have been overwritten, too.
func (m *reader) load(number uint32, v value) {
	s := slot(number)
	if s < 0 || s >= registers {
		return
	}
	m.held[s] = v
	for i := s + 1; i < min(s+4, registers); i++ {
		m.held[i] = value{}
	}
}

// loadConstant notes that a register and those that follow it hold one of several values.
func (m *reader) loadConstant(number uint32, list [][]byte) {
	m.load(number, value{what: constant, one: list})
	const size = 4
	longest := 0
	for _, b := range list {
		longest = max(longest, len(b))
	}
	for i := 1; i*size < longest && slot(number)+i < registers; i++ {
		m.held[slot(number)+i] = value{what: constant, one: list, offset: i * size}
	}
}

// forget is for expressions that write some register.
func (m *reader) forget() { m.held = [registers]value{} }

// meta loads something of the packet, or sets it.
func (m *reader) meta(b []byte) {
	key := number(b, unix.NFTA_META_KEY)
	if attribute(b, unix.NFTA_META_SREG) != nil {
		if key == unix.NFT_META_MARK {
			m.does(marks)
		}
		return
	}
	var v value
	switch key {
	case unix.NFT_META_L4PROTO:
		v.what = theProtocol
	case unix.NFT_META_NFPROTO:
		v.what = theFamily
	case unix.NFT_META_IIF, unix.NFT_META_OIF:
		v.what = theDevice
	case unix.NFT_META_IIFNAME, unix.NFT_META_OIFNAME:
		v.what = theDeviceName
	}
	m.load(number(b, unix.NFTA_META_DREG), v)
}

// payload loads a field of the packet (RFC 791, 3.1; RFC 8200, 3; RFC 9293, 3.1), or writes it.
func (m *reader) payload(b []byte) {
	if attribute(b, unix.NFTA_PAYLOAD_SREG) != nil {
		m.does(mangles)
		return
	}
	var v value
	offset, length := number(b, unix.NFTA_PAYLOAD_OFFSET), number(b, unix.NFTA_PAYLOAD_LEN)
	switch number(b, unix.NFTA_PAYLOAD_BASE) {
	case unix.NFT_PAYLOAD_TRANSPORT_HEADER:
		switch {
		case offset == 13 && length == 1:
			v.what = theFlags
		case offset == 0 && length == 2:
			v.what = theSourcePort
		case offset == 2 && length == 2:
			v.what = thePort
		case offset == 0 && length == 4:
			v.what = bothPorts
		}
	case unix.NFT_PAYLOAD_NETWORK_HEADER:
		if offset == 9 && length == 1 && m.ipv4 {
			v.what = theProtocol
		}
	}
	m.load(number(b, unix.NFTA_PAYLOAD_DREG), v)
}

// compare takes a comparison with what a register holds into account.
func (m *reader) compare(held value, op uint32, data []byte) {
	if m.compareState(held, op, data) {
		return
	}
	m.narrow = true
	var r ports
	switch {
	case (held.what == thePort || held.what == theSourcePort) && len(data) == 2:
		switch port := binary.BigEndian.Uint16(data); op {
		case unix.NFT_CMP_EQ:
			r = ports{port, port}
		case unix.NFT_CMP_GTE:
			r = ports{port, 1<<16 - 1}
		case unix.NFT_CMP_LTE:
			r = ports{0, port}
		case unix.NFT_CMP_GT:
			if r = (ports{port + 1, 1<<16 - 1}); port == 1<<16-1 {
				return
			}
		case unix.NFT_CMP_LT:
			if r = (ports{0, port - 1}); port == 0 {
				return
			}
		default:
			return
		}
		m.constraints = m.and(ofPorts(held.what, r))
	case op != unix.NFT_CMP_EQ:
	case held.what == bothPorts && len(data) == 4:
		from, to := binary.BigEndian.Uint16(data), binary.BigEndian.Uint16(data[2:])
		m.constraints = m.and(constraints{sources: []ports{{from, from}}, ports: []ports{{to, to}}})
	case held.what == theProtocol && len(data) == 1:
		m.constraints = m.and(constraints{protocols: []uint8{data[0]}})
	case held.what == theFamily && len(data) == 1:
		m.ipv4, m.ipv6 = m.ipv4 || data[0] == unix.NFPROTO_IPV4, m.ipv6 || data[0] == unix.NFPROTO_IPV6
	case held.what == theKind && len(data) == 4 && binary.NativeEndian.Uint32(data) == unix.RTN_LOCAL:
		m.local = true
	case held.what == theDevice && len(data) == 4 && binary.NativeEndian.Uint32(data) == loopbackIndex,
		held.what == theDeviceName && len(data) >= 3 && string(data[:3]) == "lo\x00":
		m.loopback = true
	}
}

// loopbackIndex is the index of lo in every namespace: LOOPBACK_IFINDEX in include/net/flow.h.
const loopbackIndex = 1

// loopback is the name that it has unless somebody gave it another.
const loopback = "lo"

// ofPorts is what is known of packets whose source or destination port is in a range.
func ofPorts(which subject, r ports) constraints {
	if which == theSourcePort {
		return constraints{sources: []ports{r}}
	}
	return constraints{ports: []ports{r}}
}

// lookUp takes a set or map into account, as it is now. Packets that are in no element do not pass.
func (m *reader) lookUp(b []byte) {
	name := text(attribute(b, unix.NFTA_LOOKUP_SET))
	key := m.register(number(b, unix.NFTA_LOOKUP_SREG))
	to := attribute(b, unix.NFTA_LOOKUP_DREG)
	m.narrow = true
	if to != nil && number(b, unix.NFTA_LOOKUP_DREG) == unix.NFT_REG_VERDICT {
		m.branch(name, key)
		return
	}
	if number(b, unix.NFTA_LOOKUP_FLAGS)&unix.NFT_LOOKUP_F_INV == 0 {
		m.isIn(name, key)
	}
	if to != nil {
		m.forget() // a long value overwrites several registers
		if list := m.rules.set(m.at.table, name).values(); list != nil {
			m.loadConstant(number(b, unix.NFTA_LOOKUP_DREG), list)
		}
	}
}

// isIn takes into account that what a register holds is in a set.
func (m *reader) isIn(name string, key value) {
	switch key.what {
	case thePort, theSourcePort:
		if list, _, ok := m.rules.set(m.at.table, name).ports(); ok {
			c := constraints{ports: list}
			if key.what == theSourcePort {
				c = constraints{sources: list}
			}
			m.constraints = m.and(c)
		}
	case theProtocol:
		if list, ok := m.rules.set(m.at.table, name).protocols(); ok {
			m.constraints = m.and(constraints{protocols: list})
		}
	default:
	}
}

// branch follows a map to verdicts. Where it is too large to be read, packets may go to every chain of the table.
func (m *reader) branch(name string, key value) {
	var which func(ports) constraints
	if key.what == thePort || key.what == theSourcePort {
		which = func(r ports) constraints { return ofPorts(key.what, r) }
	}
	list, ok := m.rules.set(m.at.table, name).chains(which)
	if !ok {
		for k, c := range m.rules.chains {
			if k.table == m.at.table && k != m.at && !c.base {
				list = append(list, jump{chain: k.name})
			}
		}
		slices.SortFunc(list, func(a, b jump) int { return strings.Compare(a.chain, b.chain) })
	}
	for _, to := range list {
		all := m.constraints
		m.constraints = m.and(to.constraints)
		m.add(effect{kind: jumps, chain: to.chain})
		m.constraints = all
	}
	m.into.sorted = m.into.sorted || m.byConnection
}
