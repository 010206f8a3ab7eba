package conntrack

import (
	"math/bits"
	"time"

	"ctguard/policy"
)

// underWay remembers which entries had not been answered yet, were TCP handshakes under way, or a forwarded service's,
// when a purge last looked: the kernel tells the age of an entry in whole seconds at best, and in a second a flood
// fills a table. It is a bit for each entry, at the place that the kernel's id of it says; of a full table about every
// tenth shares its bit with another. It is used by one walk at a time.
type underWay struct {
	at           time.Time // when the newest look began
	looks        bool      // the walk that is going on is that look
	before, seen []uint64  // what was there at the look before, and at this one
}

// looks are what each purge remembers, however long it waits.
type looks map[policy.Purge]*underWay

// at returns what is remembered for a purge, and forgets what none wants any more.
func (l *looks) at(p policy.Purge) *underWay {
	p.Unfinished = 0
	for one, u := range *l {
		if one != p && time.Since(u.at) > underWayStales {
			delete(*l, one)
		}
	}
	if (*l)[p] == nil {
		if *l == nil {
			*l = make(looks)
		}
		(*l)[p] = new(underWay)
	}
	return (*l)[p]
}

// Bounds of underWay.
const (
	bitsPerEntry   = 8
	mostBits       = 1 << 26          // 8 MiB
	underWayStales = 10 * time.Second // a look that is older says nothing of this flood
)

// begin prepares for a walk over a table with room for so many entries, and reports whether it is a new look: unless
// the one before was less than age ago.
func (u *underWay) begin(now time.Time, age time.Duration, room int) bool {
	since := now.Sub(u.at)
	if u.looks = since >= age; !u.looks {
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

// again reports whether an entry was there at the look before the newest as well, and notes for the next one that it
// was not.
func (u *underWay) again(e *entry) bool {
	id := e.id()
	if id == 0 {
		return false
	}
	place, bit := id/64%uint32(len(u.before)), uint64(1)<<(id%64)
	if u.before[place]&bit != 0 {
		return true
	}
	if u.looks {
		u.seen[place] |= bit
	}
	return false
}
