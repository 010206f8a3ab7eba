package conntrack

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync/atomic"

	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"

	"ctguard/policy"
)

// Eviction says which entries go. Caps thin sources, Selectors free the entries of traffic that is
// not tracked any more; both may be given at once and cost one pass over the table.
type Eviction struct {
	Caps      []policy.Cap
	Selectors []policy.Selector
	Local     func(netip.Addr) bool // whether an address is this host's own; needed for Selectors
	Spare     []netip.Prefix        // the allowlist: entries with such an original source are never evicted
	Timeouts  map[string]int        // seconds by sysctl name, as they are in force: needed for Cap.SpareRecent
	Rate      *rate.Limiter         // deletions per second, nil for no bound; Evict waits for it, in batches up to its burst
	Progress  *atomic.Uint64        // grows with each entry deleted while Evict runs; nil if nobody watches
}

// Evicted is what became of an eviction, in entries.
type Evicted struct {
	Entries   int                  // really deleted
	PerPrefix map[netip.Prefix]int // of them, by the prefix of the cap
	Freed     int                  // of them, for a selector
	Gone      int                  // gone before the delete reached them
	Left      int                  // over their cap and still there: spared, refused by the kernel, or out of time
}

// heapLimit is how many entries an eviction remembers at most, in all: 16 MiB.
var heapLimit = 1 << 17 // tests lower it

// Evict deletes, of each capped source, the entries above Cap.Keep: unreplied ones first, then
// half-open, closing, replied and assured ones, and of each class those that would expire soonest,
// because they have been idle for longest. It deletes while the dump runs and stops exactly at Keep
// as far as the dump is exact. Of the selectors' traffic it deletes every entry that carries no NAT
// and has no helper: freeing those would cut them.
//
// Sources whose Keep is so large that their entries would not fit the memory bound are counted in a
// pass of their own before.
//
// When ctx ends or the kernel fails, Evict returns what was done until then beside the error.
func (t *Table) Evict(ctx context.Context, v Eviction) (Evicted, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(v.Caps) == 0 && len(v.Selectors) == 0 {
		return Evicted{}, nil
	}
	if len(v.Selectors) > 0 && v.Local == nil {
		return Evicted{}, errors.New("evict: selectors given, but not which addresses are local")
	}
	x := newEvictor(v)
	parts := t.partsFor(v)
	if x.counting {
		if err := t.walkParts(ctx, parts, x.count); err != nil {
			return x.result(), fmt.Errorf("evict: %w", err)
		}
		x.aim()
	}
	queue, err := t.newChanges(ctx, msgDelete, v.Rate)
	if err != nil {
		return x.result(), fmt.Errorf("evict: %w", err)
	}
	queue.done, queue.failed, queue.skipped = x.deleted, x.refused, x.skipped
	x.queue = queue
	err = t.walkParts(ctx, parts, x.visit)
	if closeErr := queue.close(); closeErr != nil {
		err = closeErr
	}
	if err != nil {
		err = fmt.Errorf("evict: %w", err)
	}
	return x.result(), err
}

// maxFiltered is how many sources are looked for one by one: a dump that the kernel filters costs
// about a quarter of a whole one.
const maxFiltered = 3

// partsFor says which parts of the table an eviction must see.
func (t *Table) partsFor(v Eviction) []part {
	if len(v.Selectors) > 0 {
		return []part{{}}
	}
	can := t.capabilities().FilteredDump
	oneByOne := len(v.Caps) <= maxFiltered
	var parts []part
	four, six := false, false
	for _, c := range v.Caps {
		is4 := c.Prefix.Addr().Is4()
		four, six = four || is4, six || !is4
		oneByOne = oneByOne && c.Prefix.IsSingleIP() && can.of(c.Prefix.Addr())
		parts = append(parts, part{source: c.Prefix.Addr()})
	}
	switch {
	case oneByOne:
		return parts
	case !six:
		return []part{{family: unix.AF_INET}}
	case !four:
		return []part{{family: unix.AF_INET6}}
	}
	return []part{{}}
}

func (t *Table) walkParts(ctx context.Context, parts []part, visit func(*entry) bool) error {
	for _, p := range parts {
		if _, err := t.walk(ctx, p, deadline(0), visit); err != nil {
			return err
		}
	}
	return nil
}

// quarry is one capped source during an eviction.
type quarry struct {
	cap     policy.Cap
	fixed   int        // entries that stay whatever happens
	ranks   ranks      // entries that stay for now
	counted *histogram // instead of ranks, for a large Keep
	deleted int
	left    int
}

// rank returns what an entry of the source is worth.
func (q *quarry) rank(e *entry) rank {
	at := rankOf(e)
	if q.cap.ClosingFirst {
		at = at.closingFirst()
	}
	return at
}

// evictor is one eviction under way.
type evictor struct {
	quarries  []quarry
	bySource  prefixMap
	spare     prefixSet
	timeouts  *limits
	selection selection
	queue     *changes
	progress  *atomic.Uint64
	counting  bool // there are quarries to be counted first
	freed     int
	gone      int
	left      int
}

// owners of changes that belong to no quarry.
const ownerSelector int32 = -1

func newEvictor(v Eviction) *evictor {
	x := &evictor{spare: newPrefixSet(v.Spare), timeouts: newLimits(v.Timeouts), selection: newSelection(v.Selectors, v.Local), progress: v.Progress}
	if x.progress == nil {
		x.progress = new(atomic.Uint64)
	}
	caps := slices.Clone(v.Caps)
	slices.SortStableFunc(caps, func(a, b policy.Cap) int { return a.Keep - b.Keep })
	room := heapLimit
	for i, c := range caps {
		q := quarry{cap: c}
		if room -= max(c.Keep, 0); room < 0 {
			q.counted = &histogram{counts: make([]uint32, numSteps)}
			x.counting = true
		}
		x.quarries = append(x.quarries, q)
		x.bySource.add(c.Prefix, int32(i))
	}
	return x
}

// find returns the quarry of an entry and its index, or nil.
func (x *evictor) find(e *entry) (*quarry, int32) {
	i, ok := x.bySource.find(e.orig.src)
	if !ok {
		return nil, 0
	}
	return &x.quarries[i], i
}

// stays says whether an entry of a quarry may not be touched.
func (x *evictor) stays(q *quarry, e *entry, at rank) bool {
	if at>>32 == rank(policy.Assured) && (q.cap.SpareAssured || q.cap.SpareRecent && !silentFor(e, x.timeouts, recent)) {
		return true
	}
	return x.spare.contains(e.orig.src)
}

// recent is how many seconds a conversation that just spoke counts as one that goes on.
const recent = 60

// count looks at an entry of the counting pass.
func (x *evictor) count(e *entry) bool {
	q, _ := x.find(e)
	if q == nil || q.counted == nil || x.selection.frees(e) && !x.spare.contains(e.orig.src) {
		return true
	}
	if at := q.rank(e); x.stays(q, e, at) {
		q.fixed++
	} else {
		q.counted.count(at)
	}
	return true
}

// aim turns what was counted into what goes.
func (x *evictor) aim() {
	for i := range x.quarries {
		q := &x.quarries[i]
		if q.counted == nil {
			continue
		}
		excess := q.fixed + q.counted.held - q.cap.Keep
		q.counted.aim(excess)
		q.left += min(max(excess-q.counted.held, 0), q.fixed)
	}
}

// visit decides on one entry and queues what goes. It says whether the dump is still needed.
func (x *evictor) visit(e *entry) bool {
	if x.selection.frees(e) && !x.spare.contains(e.orig.src) {
		x.queue.add(ownerSelector, e.family, e.bytes(e.tupleSpan), e.bytes(e.zoneSpan), e.bytes(e.idSpan))
		return x.queue.err == nil
	}
	q, owner := x.find(e)
	if q == nil {
		return true
	}
	at := q.rank(e)
	switch stays := x.stays(q, e, at); {
	case q.counted != nil:
		if !stays && q.counted.takes(at) {
			x.delete(owner, e)
		}
	case stays:
		x.fix(q, owner)
	case q.fixed+q.ranks.len() < q.cap.Keep:
		if !q.ranks.push(e, at) {
			x.fix(q, owner) // it has attributes nobody knows yet: leave it alone
		}
	default:
		x.contest(q, owner, e, at)
	}
	return x.queue.err == nil
}

// fix counts an entry that stays, which may cost another one its place.
func (x *evictor) fix(q *quarry, owner int32) {
	q.fixed++
	if q.fixed+q.ranks.len() > q.cap.Keep {
		if q.ranks.len() == 0 {
			q.left++
			return
		}
		_, r := q.ranks.least()
		x.queue.add(owner, r.family, r.attributes())
		q.ranks.drop()
	}
}

// contest deletes e, or the least valuable entry kept so far if that is worth less.
func (x *evictor) contest(q *quarry, owner int32, e *entry, at rank) {
	if q.ranks.len() > 0 {
		if least, r := q.ranks.least(); least < at {
			x.queue.add(owner, r.family, r.attributes())
			q.ranks.replaceLeast(e, at)
			return
		}
	}
	x.delete(owner, e)
}

func (x *evictor) delete(owner int32, e *entry) {
	x.queue.add(owner, e.family, e.bytes(e.tupleSpan), e.bytes(e.zoneSpan), e.bytes(e.idSpan))
}

func (x *evictor) deleted(owner int32) {
	x.progress.Add(1)
	if owner == ownerSelector {
		x.freed++
		return
	}
	x.quarries[owner].deleted++
}

func (x *evictor) refused(owner int32, errno unix.Errno) {
	if vanished(errno) {
		x.gone++
		return
	}
	x.skipped(owner) // EBUSY: older kernels do not delete flows that hardware forwards
}

func (x *evictor) skipped(int32) { x.left++ }

func (x *evictor) result() Evicted {
	r := Evicted{Entries: x.freed, PerPrefix: make(map[netip.Prefix]int), Freed: x.freed, Gone: x.gone, Left: x.left}
	for _, q := range x.quarries {
		r.Entries += q.deleted
		r.Left += q.left
		if q.deleted > 0 {
			r.PerPrefix[q.cap.Prefix] += q.deleted
		}
	}
	return r
}

// EvictPrefix deletes every entry whose original source is in p, except those in spare, and returns
// how many. For a single address, on a kernel that can, that is one request which the kernel works
// on alone; the number is then the fall of the table's count, off by the entries that came or went
// meanwhile. Otherwise it is one pass over the table, and the number is exact.
func (t *Table) EvictPrefix(ctx context.Context, p netip.Prefix, spare []netip.Prefix) (int, error) {
	overlaps := func(s netip.Prefix) bool { return s.Overlaps(p) }
	if !p.IsSingleIP() || slices.ContainsFunc(spare, overlaps) || !t.capabilities().FilteredFlush.of(p.Addr()) {
		e, err := t.Evict(ctx, Eviction{Caps: []policy.Cap{{Prefix: p}}, Spare: spare})
		return e.Entries, err
	}
	before, err := t.Count()
	if err != nil {
		return 0, err
	}
	if err := t.flushSource(p.Addr()); err != nil {
		return 0, fmt.Errorf("evict %v: %w", p, err)
	}
	after, err := t.Count()
	return max(before-after, 0), err
}

// flushSource deletes all entries of one original source by a filtered flush. Never call it on a
// kernel that has not been probed: one that does not know the filter flushes the whole table.
func (t *Table) flushSource(source netip.Addr) error {
	s, err := t.dial()
	if err != nil {
		return err
	}
	defer s.close()
	// Version 1 of struct nfgenmsg makes the kernel heed the family of a flush.
	b := appendMessage(nil, msgDelete, unix.NLM_F_ACK, 0, familyOf(source), 1)
	b = appendSourceFilter(b, source)
	closeMessage(b, 0)
	if err := s.send(b); err != nil {
		return err
	}
	return s.acknowledged()
}
