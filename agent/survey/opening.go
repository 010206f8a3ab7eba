package survey

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// opening is what is known of a rule's packets as far as connections begin with them.
type opening struct {
	onlyNew  bool // they are the first of tracked connections, perhaps among others, and never untracked
	narrow   bool // they are told apart by something else, too
	noneOpen bool // they are TCP segments that open nothing
	onlySYN  bool // they are SYNs
}

// Bits of the state of a connection: include/uapi/linux/netfilter/nf_conntrack_common.h.
const (
	ctInvalid     = 1 << 0
	ctEstablished = 1 << 1
	ctRelated     = 1 << 2
	ctNew         = 1 << 3
	ctUntracked   = 1 << 6
)

// judges notes that the rule decides on packets that come so far. A rule that accepts whatever is new is left to the
// trial: all of a service depends on it, or nothing. What drops segments that open nothing is not missed by
// what is untracked: the host answers them with a reset.
func (m *reader) judges(what judgement) {
	if m.noneOpen && what == drops || m.onlySYN && what != drops {
		m.does(bySYN)
	}
	if !m.onlyNew {
		return
	}
	refuses := what == drops && !m.noneOpen
	if refuses || what != drops && m.narrow {
		m.does(judgesNew)
	}
	if refuses || what == sorts {
		m.does(refusesNew)
	}
	if what != drops && m.narrow {
		m.does(admitsNew)
	}
}

// judgement is what a rule does with packets.
type judgement uint8

const (
	drops judgement = iota
	accepts
	sorts // other rules see them
)

// masked follows the state of the connection, or the flags of TCP, through a mask.
func (m *reader) masked(b []byte) {
	held := m.register(number(b, unix.NFTA_BITWISE_SREG))
	m.forget()
	if mask := attribute(attribute(b, unix.NFTA_BITWISE_MASK), unix.NFTA_DATA_VALUE); held.what == theState ||
		held.what == theFlags {
		m.load(number(b, unix.NFTA_BITWISE_DREG), value{what: held.what, one: [][]byte{mask}})
	}
}

// compareState takes a comparison of the state of the connection or of the flags of TCP into account, and says whether
// it was one of the state.
func (m *reader) compareState(held value, op uint32, data []byte) bool {
	switch {
	case held.what == theFlags && len(data) == 1:
		m.compareFlags(held, op, data[0])
		return false
	case held.what != theState:
		return false
	case len(data) != 4:
	case held.one == nil && op == unix.NFT_CMP_EQ:
		m.isState(binary.NativeEndian.Uint32(data))
	case len(held.one) == 1 && len(held.one[0]) == 4 && op == unix.NFT_CMP_NEQ && binary.NativeEndian.Uint32(data) == 0:
		m.isState(binary.NativeEndian.Uint32(held.one[0]))
	}
	return true
}

// compareFlags takes a comparison of TCP's flags into account: that they are SYN, perhaps beneath a mask, or that one
// of a mask is set, which is SYN.
func (m *reader) compareFlags(held value, op uint32, flags byte) {
	const syn = 1 << 1
	isSYN := flags == syn
	if flags == 0 && len(held.one) == 1 && len(held.one[0]) == 1 && held.one[0][0] == syn {
		isSYN, op = true, op^unix.NFT_CMP_NEQ^unix.NFT_CMP_EQ
	}
	m.onlySYN = m.onlySYN || isSYN && op == unix.NFT_CMP_EQ
	m.noneOpen = m.noneOpen || isSYN && op == unix.NFT_CMP_NEQ
}

// isState takes into account that the state is one of several bits.
func (m *reader) isState(bits uint32) {
	m.onlyNew = m.onlyNew || bits&ctNew != 0 && bits&ctUntracked == 0
}

// stateMatch takes the match of iptables on connections into account.
func (m *reader) stateMatch(name string, revision uint32, info []byte) {
	asked, _ := readStateMatch(name, revision, info)
	m.narrow = m.narrow || asked.others
	if asked.states != 0 && !asked.inverted {
		m.isState(asked.states)
	}
}

// stateMatch is what a match of iptables asks of the connection.
type stateMatch struct {
	states   uint32 // one of these, as nftables has them; 0 means any
	inverted bool   // none of them
	others   bool   // something else, too
}

// readStateMatch reads struct xt_conntrack_mtinfo1 to 3, or struct xt_state_info; ok is false for what is not known.
func readStateMatch(name string, revision uint32, info []byte) (asked stateMatch, ok bool) {
	const (
		flagsAt, invertedAt, statesAt = 146, 148, 150
		byState, alias                = 1 << 0, 1 << 13 // XT_CONNTRACK_STATE, XT_CONNTRACK_STATE_ALIAS
		untracked                     = 1 << 8          // XT_CONNTRACK_STATE_UNTRACKED; all others are alike
	)
	var states uint32
	switch {
	case name == "state" && len(info) >= 4:
		states = binary.NativeEndian.Uint32(info)
	case len(info) < statesAt+2 || revision == 0:
		return stateMatch{}, false
	default:
		flags, inverted := binary.NativeEndian.Uint16(info[flagsAt:]), binary.NativeEndian.Uint16(info[invertedAt:])
		asked.others = flags&^(byState|alias) != 0
		asked.inverted = inverted&byState != 0
		if flags&byState == 0 {
			return asked, true
		}
		states = uint32(binary.NativeEndian.Uint16(info[statesAt:]))
		if revision == 1 {
			states = uint32(info[statesAt])
		}
	}
	asked.states = states & (ctInvalid | ctEstablished | ctRelated | ctNew)
	if states&untracked != 0 {
		asked.states |= ctUntracked
	}
	return asked, true
}

// flagsMatch reads the flags of struct xt_tcp: which of them are looked at, which are to be set, and what is inverted.
func (m *reader) flagsMatch(info []byte) {
	const maskAt, flagsAt, inversionsAt = 9, 10, 11
	const syn, inverted = 1 << 1, 1 << 2
	if len(info) <= inversionsAt || info[maskAt] == 0 || info[flagsAt] != syn {
		return
	}
	if info[inversionsAt]&inverted != 0 {
		m.noneOpen = true
	} else {
		m.onlySYN = true
	}
}
