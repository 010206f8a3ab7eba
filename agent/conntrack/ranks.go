package conntrack

import (
	"math/bits"

	"ctguard/policy"
)

// rank orders the entries of one source by what they are worth, the first to go first: by class, and
// within a class the one that would expire soonest, because no packet has renewed it for longest.
type rank uint64

func rankOf(e *entry, oneSided bool) rank { return rank(e.class(oneSided))<<32 | rank(e.timeout) }

// closingFirst returns the rank with closing entries before those of handshakes under way.
func (r rank) closingFirst() rank {
	class := policy.Class(r >> 32)
	switch class {
	case policy.Closing:
		class = 0
	case policy.Unreplied, policy.HalfOpen:
		class++
	default:
	}
	return rank(class)<<32 | r&(1<<32-1)
}

// recordBytes holds the attributes that name any entry today: 84 bytes for an IPv6 tuple with a zone
// of its own, 8 for the zone, 8 for the id, and a little to spare.
const recordBytes = 108

// record is an entry kept for later: what a delete request needs.
type record struct {
	family        uint8
	mayBeginAgain bool
	n             uint8
	b             [recordBytes]byte
}

// set copies what names e and says whether it fitted.
func (r *record) set(e *entry) bool {
	b := append(r.b[:0], e.bytes(e.tupleSpan)...)
	b = append(append(b, e.bytes(e.zoneSpan)...), e.bytes(e.idSpan)...)
	r.family, r.mayBeginAgain, r.n = e.family, e.mayBeginAgain(), uint8(min(len(b), recordBytes))
	return len(b) <= recordBytes
}

func (r *record) attributes() []byte { return r.b[:r.n] }

// ranks keeps the most valuable entries of a source, the least valuable of them on top: a binary
// heap, so that one pass over the table finds exactly those that go, in memory for those that stay.
type ranks struct {
	keys    []rankedRecord
	records []record
}

type rankedRecord struct {
	rank   rank
	record uint32
}

func (r *ranks) len() int { return len(r.keys) }

// push adds e, or says that it cannot be kept.
func (r *ranks) push(e *entry, at rank) bool {
	var rec record
	if !rec.set(e) {
		return false
	}
	r.records = append(r.records, rec)
	r.keys = append(r.keys, rankedRecord{at, uint32(len(r.records) - 1)})
	for i := len(r.keys) - 1; i > 0; {
		parent := (i - 1) / 2
		if r.keys[parent].rank <= r.keys[i].rank {
			break
		}
		r.keys[parent], r.keys[i] = r.keys[i], r.keys[parent]
		i = parent
	}
	return true
}

// least returns the least valuable entry.
func (r *ranks) least() (rank, *record) { return r.keys[0].rank, &r.records[r.keys[0].record] }

// replaceLeast puts e in the place of the least valuable entry.
func (r *ranks) replaceLeast(e *entry, at rank) {
	r.records[r.keys[0].record].set(e)
	r.keys[0].rank = at
	r.sink()
}

// drop forgets the least valuable entry. Its record stays behind unused: a source loses room in the
// heap only to entries that are spared, which is rare.
func (r *ranks) drop() {
	last := len(r.keys) - 1
	r.keys[0] = r.keys[last]
	r.keys = r.keys[:last]
	r.sink()
}

func (r *ranks) sink() {
	for i := 0; ; {
		child := 2*i + 1
		if child >= len(r.keys) {
			return
		}
		if child+1 < len(r.keys) && r.keys[child+1].rank < r.keys[child].rank {
			child++
		}
		if r.keys[i].rank <= r.keys[child].rank {
			return
		}
		r.keys[i], r.keys[child] = r.keys[child], r.keys[i]
		i = child
	}
}

// A source that may keep so many entries that their heap would be too large is counted in one pass
// and thinned in a second. Steps of the count are an eighth of a power of two of seconds: of an
// established TCP flow with five days, nine hours.
const (
	stepBits      = 3
	stepsPerClass = 32 << stepBits
	numSteps      = int(policy.NumClasses) * stepsPerClass
)

// step is the rank, coarse enough to count.
func (r rank) step() int {
	class, left := int(r>>32), uint32(r)
	if left < 1<<stepBits {
		return class*stepsPerClass + int(left)
	}
	shift := bits.Len32(left) - stepBits - 1
	return class*stepsPerClass + (shift+1)<<stepBits + int(left>>shift)&(1<<stepBits-1)
}

// histogram counts a source's entries by step; then it says which of them go.
type histogram struct {
	counts []uint32 // by step
	held   int
	bound  int // entries below this step go
	part   int // and so many of it
	excess int // and not more than that in all
}

func (h *histogram) count(at rank) {
	h.held++
	h.counts[at.step()]++
}

// aim fixes which entries go, so that no more than `excess` do.
func (h *histogram) aim(excess int) {
	h.excess = max(excess, 0)
	left := h.excess
	for h.bound = 0; h.bound < len(h.counts) && int(h.counts[h.bound]) <= left; h.bound++ {
		left -= int(h.counts[h.bound])
	}
	h.part = left
}

// takes says whether an entry goes, and counts it if so.
func (h *histogram) takes(at rank) bool {
	switch s := at.step(); {
	case h.excess == 0 || s > h.bound:
		return false
	case s == h.bound && h.part == 0:
		return false
	case s == h.bound:
		h.part--
	}
	h.excess--
	return true
}
