package survey

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"
)

// immediate writes a constant, or ends the rule.
func (m *reader) immediate(b []byte) {
	register := number(b, unix.NFTA_IMMEDIATE_DREG)
	data := attribute(b, unix.NFTA_IMMEDIATE_DATA)
	if register != unix.NFT_REG_VERDICT {
		m.loadConstant(register, [][]byte{attribute(data, unix.NFTA_DATA_VALUE)})
		return
	}
	verdict := attribute(data, unix.NFTA_DATA_VERDICT)
	code := int32(number(verdict, unix.NFTA_VERDICT_CODE))
	switch code {
	case unix.NFT_RETURN:
	case 0: // NF_DROP
		m.judges(drops)
	case unix.NFT_JUMP, unix.NFT_GOTO:
		m.judges(sorts)
	default:
		m.judges(accepts)
	}
	switch code {
	case unix.NFT_JUMP, unix.NFT_GOTO:
		m.add(effect{kind: jumps, chain: text(attribute(verdict, unix.NFTA_VERDICT_CHAIN))})
	case unix.NFT_RETURN, 1: // NF_ACCEPT
		m.into.sorted = m.into.sorted || m.byConnection
	}
	if int32(number(verdict, unix.NFTA_VERDICT_CODE)) == unix.NFT_GOTO {
		m.into.sorted = m.into.sorted || m.byConnection
	}
}

// ofConnection reads or sets something of the connection.
func (m *reader) ofConnection(b []byte) {
	key := number(b, unix.NFTA_CT_KEY)
	if attribute(b, unix.NFTA_CT_SREG) != nil {
		m.does(setting(key))
		return
	}
	m.load(number(b, unix.NFTA_CT_DREG), value{})
	switch key {
	case unix.NFT_CT_MARK:
		m.does(readsMark)
	case unix.NFT_CT_LABELS:
		m.does(readsLabel)
	case unix.NFT_CT_SECMARK:
		m.does(readsSecurity)
	case unix.NFT_CT_PKTS, unix.NFT_CT_BYTES, unix.NFT_CT_AVGPKT:
		m.does(measures)
		m.byConnection = true
	case unix.NFT_CT_STATE:
		m.load(number(b, unix.NFTA_CT_DREG), value{what: theState})
		m.byConnection = true
	default:
		// Direction, addresses: no untracked packet matches. Where that decides whether packets pass, the
		// trial finds out; where it decides on their mark, it would not.
		m.byConnection = true
	}
}

// setting is what a rule does that sets something of a connection.
func setting(key uint32) kind {
	switch key {
	case unix.NFT_CT_MARK:
		return writesMark
	case unix.NFT_CT_LABELS:
		return writesLabel
	case unix.NFT_CT_SECMARK:
		return writesSecurity
	case unix.NFT_CT_ZONE:
		return setsZone
	case unix.NFT_CT_EVENTMASK:
		return setsEvents
	}
	return unknown
}

// Kinds of objects of nf_tables: include/uapi/linux/netfilter/nf_tables.h.
const (
	objectHelper    = 3
	objectConnlimit = 5
	objectTimeout   = 7
	objectSynproxy  = 10
	objectExpect    = 9
)

// object refers to a named object, or by a map to one of several.
func (m *reader) object(b []byte) {
	kind := number(b, unix.NFTA_OBJREF_IMM_TYPE)
	if name := attribute(b, unix.NFTA_OBJREF_SET_NAME); name != nil {
		kind = m.rules.set(m.at.table, text(name)).objectType
		all := m.constraints
		defer func() { m.constraints = all }()
		m.isIn(text(name), m.register(number(b, unix.NFTA_OBJREF_SET_SREG)))
	}
	switch kind {
	case objectHelper:
		m.does(setsHelper)
	case objectConnlimit:
		m.does(limits)
	case objectTimeout:
		m.does(setsTimeout)
	case objectExpect:
		m.does(expects)
	case objectSynproxy:
		m.does(synproxies)
	case 0: // the map could not be read
		m.does(unknown)
	}
}

// Attributes of dynset that carry expressions: NFTA_DYNSET_EXPR and NFTA_DYNSET_EXPRESSIONS.
const (
	dynsetExpression  = 7
	dynsetExpressions = 10
)

// dynamic adds to a set, and may count connections for each element.
func (m *reader) dynamic(b []byte) {
	if m.rules.set(m.at.table, text(attribute(b, unix.NFTA_DYNSET_SET_NAME))).limits {
		m.does(limits)
	}
	for kind, value := range attributes(b) {
		switch kind {
		case dynsetExpression:
			m.expression(attribute(value, unix.NFTA_EXPR_NAME), attribute(value, unix.NFTA_EXPR_DATA))
		case dynsetExpressions:
			for _, one := range attributes(value) {
				m.expression(attribute(one, unix.NFTA_EXPR_NAME), attribute(one, unix.NFTA_EXPR_DATA))
			}
		}
	}
}

// translation reads the targets of dnat and snat from the registers that hold them.
func (m *reader) translation(b []byte) effect {
	e := effect{kind: translates}
	e.to, e.keepsPort = m.portsIn(b, unix.NFTA_NAT_REG_PROTO_MIN, unix.NFTA_NAT_REG_PROTO_MAX)
	length := 4
	if number(b, unix.NFTA_NAT_FAMILY) == unix.NFPROTO_IPV6 {
		length = 16
	}
	least := m.register(number(b, unix.NFTA_NAT_REG_ADDR_MIN))
	most := least
	if register := number(b, unix.NFTA_NAT_REG_ADDR_MAX); register != 0 {
		most = m.register(register)
	}
	for _, one := range least.from(length) {
		if addr, ok := netip.AddrFromSlice(one); ok && (!e.from.IsValid() || addr.Less(e.from)) {
			e.from = addr
		}
	}
	for _, one := range most.from(length) {
		if addr, ok := netip.AddrFromSlice(one); ok && e.last.Less(addr) {
			e.last = addr
		}
	}
	return e
}

// redirection reads the target of redirect, which is this host.
func (m *reader) redirection(b []byte) effect {
	e := effect{kind: translates}
	e.to, e.keepsPort = m.portsIn(b, unix.NFTA_REDIR_REG_PROTO_MIN, unix.NFTA_REDIR_REG_PROTO_MAX)
	return e
}

// portsIn returns the ports that two registers hold the ends of; nil where that is not known.
func (m *reader) portsIn(b []byte, least, most uint16) (list []ports, keeps bool) {
	first := number(b, least)
	if first == 0 {
		return nil, true
	}
	last := number(b, most)
	if last == 0 {
		last = first
	}
	from, to := m.register(first).from(2), m.register(last).from(2)
	if len(from) == 0 || len(from) != len(to) {
		return nil, false
	}
	for i := range from {
		list = append(list, ports{binary.BigEndian.Uint16(from[i]), binary.BigEndian.Uint16(to[i])})
	}
	return list, false
}
