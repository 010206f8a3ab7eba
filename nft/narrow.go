package nft

import (
	"time"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Path MTU discovery needs ICMP errors that say how large a packet may be (RFC 1191; RFC 8201). Filters let them in
// as related to a connection, and to an untracked one they are not: whoever sits behind a tunnel or a DSL line with
// a small MTU would get the first page of nothing. So the addresses that such an error says are hard to get to are
// remembered for a moment, and what this host sends them is tracked meanwhile. It sends the packet again within a
// second, the error comes again, is related to that packet's entry and gets in; then the kernel knows the MTU for
// ten minutes.
//
// Looking for an address costs every answer something, so the sets are asked only once such errors have come, and for
// as long as they go on: what finds that out reads a counter a few times a second, before the second repetition.
//
// Anybody can forge such an error. Then answers to an address are tracked for a moment: of a flood's SYNs and stray
// segments none makes an entry, because a SYN-ACK or a reset begins no connection for conntrack.
var narrow = bothFamilies("narrow", remembering)

// A connection that waits repeats itself after 0.2, 0.6, 1.4, 3 and 6 seconds. The set is small: what does not fit
// stays untracked.
const (
	narrowTimeout = 10 * time.Second
	narrowSize    = 4096
)

// Where the packet that an error is about begins in the error's message, behind its header of eight bytes, and the
// destination in that packet's own header: RFC 792, RFC 4443 3.2, RFC 791 3.1, RFC 8200 3.
const (
	tooBigTo4 = 8 + 16
	tooBigTo6 = 8 + 24
)

// fragmentationNeeded is the code of such an error in IPv4 (RFC 1191, 4).
const fragmentationNeeded = 4

// saysSmaller matches errors that say that a packet needs to be smaller.
func saysSmaller(v6 bool) statement {
	if v6 {
		return packetTooBig.statement()
	}
	s := unreachable[0].statement()
	s.text += " icmp code frag-needed"
	s.exprs = append(s.exprs, loadHeader(expr.PayloadBaseTransportHeader, 1, 1), equal([]byte{fragmentationNeeded}))
	return s
}

// rememberTo adds the address that the packet in question was sent to.
func rememberTo(set addressSet) statement {
	load, text := loadHeader(expr.PayloadBaseTransportHeader, tooBigTo4, 4), "@th,192,32"
	if set.v6 {
		load, text = loadHeader(expr.PayloadBaseTransportHeader, tooBigTo6, 16), "@th,256,128"
	}
	return statement{
		text: "update @" + set.name + " { " + text + " }",
		exprs: []expr.Any{load,
			&expr.Dynset{SrcRegKey: reg, SetName: set.name, Operation: unix.NFT_DYNSET_OP_UPDATE}},
	}
}

// rememberNarrow are rules that remember to whom packets need to be smaller. Packets for this host come there.
func rememberNarrow() []rule {
	return []rule{
		newRule(saysSmaller(false), count(tooLong), rememberTo(narrow[0])),
		newRule(saysSmaller(true), count(tooLong), rememberTo(narrow[1])),
	}
}

// leave leaves what this host sends untracked, except to those.
func (b builder) leave() []rule {
	if !b.leaves() {
		return nil
	}
	list := []rule{newRule(notrack())}
	if !b.narrow {
		return list
	}
	return append([]rule{newRule(destination.inSet(narrow[0]), back()), newRule(destination.inSet(narrow[1]), back())},
		list...)
}

// noteNarrow has the sets asked for a while if such errors came since the last look.
func (t *Table) noteNarrow(errors uint64, now time.Time) {
	if errors != t.tooLong {
		t.tooLong, t.keep.narrow = errors, now.Add(2*narrowTimeout)
	}
}

// leaves reports whether something goes untracked.
func (b builder) leaves() bool {
	for _, s := range b.custom {
		if s.untracked && !s.selector.Group {
			return true
		}
	}
	return b.untracks
}
