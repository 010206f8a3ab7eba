package conntrack

import (
	"cmp"
	"container/heap"
	"math/bits"
	"math/rand/v2"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"

	"ctguard/policy"
)

const (
	// More sources than three quarters of that are not told apart at one time. 48 bytes each: 24 MiB.
	maxSlots = 1 << 19
	minSlots = 1 << 10
)

// kind is the class of an entry, or proven.
type kind uint8

// proven is the kind of assured entries of TCP: their handshake has proven that the address is the source's own.
const (
	proven   = kind(policy.NumClasses)
	numKinds = policy.NumClasses + 1
)

// kindOf returns the kind of an entry of a class.
func kindOf(e *entry, class policy.Class) kind {
	if class == policy.Assured && e.orig.proto == protoTCP {
		return proven
	}
	return kind(class)
}

// slot counts one source by kind. Half a cache line: what a count must wait for is one of them.
type slot struct {
	mark   uint64 // the source's hash, never 0; 0 marks a free slot
	counts [numKinds]uint32
}

// total returns how many entries the source has.
func (p *slot) total() (n uint32) {
	for _, k := range p.counts {
		n += k
	}
	return n
}

// sources counts entries by source in an open-addressing table with linear probing on memory that
// does not grow. The 64-bit hash stands for the source; its keys are random, so nobody can choose
// addresses that collide, and by chance half a million sources do once in a hundred million scans.
//
// When the table is three quarters full, the smallest sources are forgotten to make room (lossy
// counting: Manku and Motwani, VLDB 2002). A source that is listed in the end may have been forgotten
// before, so its count may be short, by less than `short`: the largest count forgotten in each round,
// summed. Every round forgets at least a quarter of a table, so a million sources with one entry each
// make a shortfall of three or so: nothing beside a heavy source.
type sources struct {
	slots    []slot
	names    []address // of the slots' sources; not in the slots, because only new sources need it
	zones    []uint16  // likewise their zones; empty until a source is in one
	mapped   []byte    // the memory of slots and names
	mask     uint64
	keys     [2]uint64
	used     int
	short    int
	forgot   [numKinds]int
	distinct distinct

	waiting    [64]waiting
	numWaiting int
	touched    uint32
}

// waiting is an entry that was added and not yet counted.
type waiting struct {
	hash   uint64
	source address
	zone   uint16
	kind   kind
}

// reset empties s and makes it fit for n entries; memory that is large enough is kept.
func (s *sources) reset(n int) {
	want := minSlots
	for want < maxSlots && want/4*3 < n {
		want *= 2
	}
	s.reserve(want)
	if s.keys[0] == 0 {
		s.keys = [2]uint64{rand.Uint64() | 1, rand.Uint64() | 1}
	}
	s.mask = uint64(want - 1)
	s.used, s.short, s.forgot = 0, 0, [numKinds]int{}
	s.numWaiting, s.zones = 0, s.zones[:0]
	s.distinct.reset()
}

// reserve makes room for n free slots. The memory is mapped, not the garbage collector's: in large
// pages where the kernel has them, since small ones would make nearly every access wait twice.
func (s *sources) reserve(n int) {
	const slotSize, nameSize = int(unsafe.Sizeof(slot{})), int(unsafe.Sizeof(address{}))
	if n <= cap(s.slots) {
		s.slots, s.names = s.slots[:n], s.names[:n]
		clear(s.slots)
		return
	}
	s.release()
	memory, err := unix.Mmap(-1, 0, n*(slotSize+nameSize), unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil { // the limit of mappings or of address space; the heap may still have room
		s.slots, s.names = make([]slot, n), make([]address, n)
		return
	}
	_ = unix.Madvise(memory, unix.MADV_HUGEPAGE)
	s.mapped = memory
	s.slots = unsafe.Slice((*slot)(unsafe.Pointer(&memory[0])), n)
	s.names = unsafe.Slice((*address)(unsafe.Pointer(&memory[n*slotSize])), n)
}

// release gives the memory back.
func (s *sources) release() {
	s.slots, s.names, s.zones = nil, nil, nil
	if s.mapped != nil {
		_ = unix.Munmap(s.mapped) // fails only for what was not mapped
		s.mapped = nil
	}
}

// hash folds the product of both halves, each hidden behind a key.
func (s *sources) hash(a address, zone uint16) uint64 {
	hi, lo := bits.Mul64(a.hi^s.keys[0]^uint64(zone)*s.keys[1], a.lo^s.keys[1])
	hi, lo = bits.Mul64(hi^lo^s.keys[1], 0x9e3779b97f4a7c15)
	return max(hi^lo, 1)
}

// add counts one entry, at the latest when settle is called.
func (s *sources) add(a address, zone uint16, k kind) {
	s.waiting[s.numWaiting] = waiting{s.hash(a, zone), a, zone, k}
	if s.numWaiting++; s.numWaiting == len(s.waiting) {
		s.settle()
	}
}

// settle counts what add has collected. Slots lie all over a table that is larger than the
// processor's caches, so each count would wait for memory alone; touching the slots of a whole batch
// first lets those waits overlap, which makes counting five times as fast.
func (s *sources) settle() {
	batch := s.waiting[:s.numWaiting]
	s.numWaiting = 0
	var touched uint32
	for i := range batch {
		touched += s.slots[batch[i].hash&s.mask].counts[0]
	}
	s.touched = touched // so that the compiler keeps the loop
	for i := range batch {
		s.count(&batch[i])
	}
}

func (s *sources) count(w *waiting) {
	for i := w.hash & s.mask; ; i = (i + 1) & s.mask {
		p := &s.slots[i]
		if p.mark == 0 {
			p.mark, s.names[i] = w.hash, w.source
			s.setZone(i, w.zone)
			s.used++
			s.distinct.add(w.hash)
		} else if p.mark != w.hash {
			continue
		}
		p.counts[w.kind]++
		break
	}
	if s.used > len(s.slots)/4*3 {
		s.forget()
	}
}

// setZone notes the zone of the source in a slot.
func (s *sources) setZone(i uint64, zone uint16) {
	switch n := len(s.slots); {
	case len(s.zones) > 0:
	case zone == 0:
		return
	case cap(s.zones) >= n:
		s.zones = s.zones[:n]
		clear(s.zones)
	default:
		s.zones = make([]uint16, n)
	}
	s.zones[i] = zone
}

// zone returns the zone of the source in a slot.
func (s *sources) zone(i uint64) uint16 {
	if len(s.zones) == 0 {
		return 0
	}
	return s.zones[i]
}

// forget drops the sources with the smallest counts until at least half of the table is free.
func (s *sources) forget() {
	var sizes [256]int // how many sources have that many entries; the last one and more
	for i := range s.slots {
		sizes[min(s.slots[i].total(), 255)]++
	}
	limit, gone := uint32(0), 0
	for gone < len(s.slots)/4 && limit < 254 {
		limit++
		gone += sizes[limit]
	}
	if gone == 0 { // every source has more than 254 entries: a table of over a hundred million
		limit = 1 << 31
	}
	s.short += int(limit)
	for i := 0; i < len(s.slots); {
		p := &s.slots[i]
		if n := p.total(); n == 0 || n > limit {
			i++
			continue
		}
		for k, n := range p.counts {
			s.forgot[k] += int(n)
		}
		s.remove(uint64(i)) // another source may move here: look again
	}
}

// remove frees a slot and moves later sources of the same cluster back, so that each stays
// reachable from where its hash points (Knuth, TAOCP 3, 6.4, algorithm R).
func (s *sources) remove(hole uint64) {
	s.used--
	for i := (hole + 1) & s.mask; s.slots[i].mark != 0; i = (i + 1) & s.mask {
		home := s.slots[i].mark & s.mask
		if (i-home)&s.mask >= (i-hole)&s.mask {
			s.slots[hole], s.names[hole] = s.slots[i], s.names[i]
			s.setZone(hole, s.zone(i))
			hole = i
		}
	}
	s.slots[hole] = slot{}
}

// largest returns the n largest sources, largest first, and what all others hold.
func (s *sources) largest(n int, prefix func(address) policy.Holding) (top []policy.Holding, rest policy.Holding) {
	h := &slotHeap{s: s}
	for k, n := range s.forgot {
		hold(&rest, kind(k), n)
	}
	for i := range s.slots {
		total := s.slots[i].total()
		if total == 0 {
			continue
		}
		if len(h.at) < n {
			if h.at = append(h.at, uint32(i)); len(h.at) == n {
				heap.Init(h)
			}
			continue
		}
		small := uint32(i)
		if n > 0 && s.slots[h.at[0]].total() < total {
			small, h.at[0] = h.at[0], small
			heap.Fix(h, 0)
		}
		addSlot(&rest, &s.slots[small])
	}
	top = make([]policy.Holding, 0, len(h.at))
	for _, i := range h.at {
		held := prefix(s.names[i])
		held.Zone = s.zone(uint64(i))
		addSlot(&held, &s.slots[i])
		top = append(top, held)
	}
	slices.SortFunc(top, func(a, b policy.Holding) int {
		return cmp.Or(b.Entries-a.Entries, a.Source().Compare(b.Source()))
	})
	return top, rest
}

func addSlot(h *policy.Holding, p *slot) {
	for k, n := range p.counts {
		hold(h, kind(k), int(n))
	}
}

// hold adds entries of a kind to what somebody holds.
func hold(h *policy.Holding, k kind, entries int) {
	h.Entries += entries
	h.Classes[min(policy.Class(k), policy.Assured)] += entries
	if k == proven {
		h.Proven += entries
	}
}

// slotHeap keeps the largest slots, the smallest of them on top.
type slotHeap struct {
	s  *sources
	at []uint32
}

func (h *slotHeap) Len() int { return len(h.at) }
func (h *slotHeap) Less(i, j int) bool {
	return h.s.slots[h.at[i]].total() < h.s.slots[h.at[j]].total()
}
func (h *slotHeap) Swap(i, j int) { h.at[i], h.at[j] = h.at[j], h.at[i] }
func (h *slotHeap) Push(any)      { panic("nothing is ever pushed") }
func (h *slotHeap) Pop() any      { panic("nothing is ever popped") }
