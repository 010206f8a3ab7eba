package survey

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// opening is what is known of a rule's packets as far as connections begin with them.
type opening struct {
	onlyNew bool // they are the first of tracked connections, perhaps among others, and never untracked
	// they are never untracked, as far as the state that is asked for says
	onlyTracked bool
	narrow      bool // they are told apart by something else, too
	noneOpen    bool // they are TCP segments that open nothing
}

// Bits of the state of a connection: include/uapi/linux/netfilter/nf_conntrack_common.h. xt_conntrack.h has another one
// for what is untracked.
const (
	stateNew         = 1 << 3
	stateUntracked   = 1 << 6
	stateUntrackedXT = 1 << 8
)

// judges notes that the rule decides on packets that come so far. A rule that accepts whatever is new is left to the
// trial: all of a service depends on it, or nothing. What drops segments that open nothing is not missed by
// what is untracked: the host answers them with a reset.
func (m *reader) judges(what judgement) {
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
	const syn = 1 << 1
	switch {
	case held.what == theFlags && op == unix.NFT_CMP_NEQ && len(data) == 1:
		m.noneOpen = m.noneOpen || data[0] == syn
		return false
	case held.what != theState:
		return false
	case len(data) != 4:
	case held.one == nil && op == unix.NFT_CMP_EQ:
		m.isState(binary.NativeEndian.Uint32(data), stateUntracked)
	case len(held.one) == 1 && len(held.one[0]) == 4 && op == unix.NFT_CMP_NEQ && binary.NativeEndian.Uint32(data) == 0:
		m.isState(binary.NativeEndian.Uint32(held.one[0]), stateUntracked)
	}
	return true
}

// isState takes into account that the state is one of several bits.
func (m *reader) isState(bits, untracked uint32) {
	m.onlyNew = m.onlyNew || bits&stateNew != 0 && bits&untracked == 0
	m.onlyTracked = m.onlyTracked || bits&untracked == 0
}

// stateMatch reads the states of struct xt_conntrack_mtinfo1 to 3, or struct xt_state_info.
func (m *reader) stateMatch(name string, revision uint32, info []byte) {
	const (
		flagsAt, invertedAt, statesAt = 146, 148, 150
		byState, alias                = 1 << 0, 1 << 13 // XT_CONNTRACK_STATE, XT_CONNTRACK_STATE_ALIAS
	)
	switch {
	case name == "state" && len(info) >= 4:
		m.isState(binary.NativeEndian.Uint32(info), stateUntrackedXT)
	case len(info) < statesAt+2 || revision == 0:
	default:
		flags, inverted := binary.NativeEndian.Uint16(info[flagsAt:]), binary.NativeEndian.Uint16(info[invertedAt:])
		m.narrow = m.narrow || flags&^(byState|alias) != 0
		states := uint32(binary.NativeEndian.Uint16(info[statesAt:]))
		if revision == 1 {
			states = uint32(info[statesAt])
		}
		if flags&byState != 0 && inverted&byState == 0 {
			m.isState(states, stateUntrackedXT)
		}
	}
}

// flagsMatch reads the flags of struct xt_tcp: which of them are looked at, which are to be set, and what is inverted.
func (m *reader) flagsMatch(info []byte) {
	const maskAt, flagsAt, inversionsAt = 9, 10, 11
	const syn, inverted = 1 << 1, 1 << 2
	if len(info) > inversionsAt && info[maskAt] != 0 && info[flagsAt] == syn && info[inversionsAt]&inverted != 0 {
		m.noneOpen = true
	}
}
