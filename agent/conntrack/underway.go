package conntrack

import (
	"math/bits"
	"time"
)

// underWay remembers which TCP handshakes were under way when it last looked: the kernel tells the age of an entry in
// whole seconds at best, and in a second a flood fills a table. It is a bit for each entry, at the place that the
// kernel's id of it says; of a full table about every tenth shares its bit with another. It is used by one walk at a
// time.
type underWay struct {
	at           time.Time // when the newest look began
	before, seen []uint64  // what was there at the look before, and at this one
}

// Bounds of underWay.
const (
	bitsPerEntry   = 8
	mostBits       = 1 << 26          // 8 MiB
	underWayStales = 10 * time.Second // a look that is older says nothing of this flood
)

// begin prepares for a look at a table with room for so many entries, unless the one before was less than age ago.
func (u *underWay) begin(now time.Time, age time.Duration, room int) bool {
	since := now.Sub(u.at)
	if since < age {
		return false
	}
	words := 1 << bits.Len(uint(max(0, min(bitsPerEntry*room, mostBits)-1))) / 64
	u.at, u.before, u.seen = now, u.seen, u.before
	if words = max(1, words); since > underWayStales || len(u.before) != words {
		u.before = make([]uint64, words)
	}
	if len(u.seen) != words {
		u.seen = make([]uint64, words)
	}
	clear(u.seen)
	return true
}

// again reports whether an entry is a handshake that was under way at the look before as well, and notes one that was
// not.
func (u *underWay) again(e *entry) bool {
	id := e.id()
	if id == 0 || e.protoInfo != protoInfoTCP || e.state != tcpSynSent && e.state != tcpSynRecv {
		return false
	}
	place, bit := id/64%uint32(len(u.seen)), uint64(1)<<(id%64)
	if u.before[place]&bit != 0 {
		return true
	}
	u.seen[place] |= bit
	return false
}
