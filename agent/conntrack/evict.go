package conntrack

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"

	"ctguard/policy"
)

// Eviction says which entries go. Caps thin sources, Selectors free the entries of traffic that is
// not tracked any more; both may be given at once and cost one pass over the table.
type Eviction struct {
	Caps      []policy.Cap
	Selectors []policy.Selector
	AtOnce    bool                  // closed TCP too is gone at once, not a second later
	OneSided  bool                  // TCP without answers counts as assured; see ScanOptions
	Local     func(netip.Addr) bool // whether an address is this host's own; needed for Selectors
	Own       []netip.Prefix        // what is this host's own; needed for Cap.SpareForward
	Inside    []netip.Prefix        // networks that this host masquerades; needed for Cap.TakeInward
	Spare     []netip.Prefix        // the allowlist: entries with such an original source are never evicted
	Timeouts  map[string]int        // seconds by sysctl name, as they are in force: needed for Cap.SpareRecent
	Retimed   map[string]int        // likewise, what a [Retiming] gave to entries that may be there still
	// deletions per second, nil for no bound; Evict waits for it, in batches up to its burst
	Rate     *rate.Limiter
	Progress *atomic.Uint64 // grows with each entry deleted while Evict runs; nil if nobody watches
	Besides  *Besides       // what else it does on its way, through all of the table then; nil for nothing
}

// heapLimit is how many entries an eviction remembers at most, in all: 16 MiB.
var heapLimit = 1 << 17 // tests lower it

// Evict deletes, of each capped source, the entries above Cap.Keep: unreplied ones first, then
// half-open, closing, replied and assured ones, and of each class those that would expire soonest,
// because they have been idle for longest. Closed TCP, over which a connection may begin again, runs out a second
// later. It deletes while the dump runs and stops exactly at Keep as far as the dump is exact. Of
// the selectors' traffic it deletes every entry that carries no NAT and has no helper: freeing those would cut them.
//
// Sources whose Keep is so large that their entries would not fit the memory bound are counted in a
// pass of their own before.
//
// It returns how many entries are deleted, also beside the error when ctx ends or the kernel fails.
func (t *Table) Evict(ctx context.Context, v Eviction) (deleted int, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(v.Caps) == 0 && len(v.Selectors) == 0 {
		return 0, nil // nothing besides it either
	}
	if len(v.Selectors) > 0 && v.Local == nil {
		return 0, errors.New("evict: selectors given, but not which addresses are local")
	}
	x := newEvictor(v)
	if !v.AtOnce { // what somebody asked for is not watched
		x.comebacks = &t.comebacks
		x.comebacks.beginEviction(time.Now(), len(v.Caps))
	}
	parts := t.partsFor(v)
	if x.counting {
		if err := t.walkParts(ctx, parts, x.count); err != nil {
			return 0, fmt.Errorf("evict: %w", err)
		}
		x.aim()
	}
	deleted, err = t.change(ctx, msgDelete, v.Rate, func(queue *changes) error {
		x.queue, queue.atOnce = queue, x.atOnce
		queue.done = func(what errand) {
			if what != retiming && v.Progress != nil {
				v.Progress.Add(1)
			}
			v.Besides.made(what)
		}
		return t.walkParts(ctx, parts, x.visit)
	})
	if err != nil {
		err = fmt.Errorf("evict: %w", err)
	}
	return deleted, err
}

// maxFiltered is how many sources are looked for one by one: a dump that the kernel filters costs
// about a quarter of a whole one.
const maxFiltered = 3

// partsFor says which parts of the table an eviction must see.
func (t *Table) partsFor(v Eviction) []part {
	if len(v.Selectors) > 0 || v.Besides != nil {
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
		one := part{source: c.Prefix.Addr()} // in every zone: older kernels filter by the address alone
		if !slices.Contains(parts, one) {
			parts = append(parts, one)
		}
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
		if _, err := t.walk(ctx, p, 0, visit); err != nil {
			return err
		}
	}
	return nil
}

// target is one capped source during an eviction.
type target struct {
	cap      policy.Cap
	oneSided bool
	fixed    int        // entries that stay whatever happens
	ranks    ranks      // entries that stay for now
	counted  *histogram // instead of ranks, for a large Keep
}

// rank returns what an entry of the source is worth.
func (q *target) rank(e *entry) rank {
	at := rankOf(e, q.oneSided)
	if q.cap.ClosingFirst {
		at = at.closingFirst()
	}
	return at
}

// evictor is one eviction under way.
type evictor struct {
	targets   []target
	bySource  prefixMap
	spare     prefixSet
	own       prefixSet
	inside    prefixSet
	silence   silence
	selection selection
	queue     *changes
	comebacks *comebacks // nil where nobody looks what comes back
	besides   besides
	counting  bool // there are sources to be counted first
	atOnce    bool
}

func newEvictor(v Eviction) *evictor {
	x := &evictor{spare: newPrefixSet(v.Spare), own: newPrefixSet(v.Own), inside: newPrefixSet(v.Inside),
		silence: newSilence(v.Timeouts, v.Retimed),
		besides: newBesides(v.Besides), atOnce: v.AtOnce, selection: newSelection(v.Selectors, v.Local)}
	caps := slices.Clone(v.Caps)
	slices.SortStableFunc(caps, func(a, b policy.Cap) int { return a.Keep - b.Keep })
	room := heapLimit
	for i, c := range caps {
		q := target{cap: c, oneSided: v.OneSided}
		if room -= max(c.Keep, 0); room < 0 {
			q.counted = &histogram{counts: make([]uint32, numSteps)}
			x.counting = true
		}
		x.targets = append(x.targets, q)
		x.bySource.add(c.Source(), int32(i))
	}
	return x
}

// find returns the capped source of an entry, or nil.
func (x *evictor) find(e *entry) *target {
	i, ok := x.bySource.find(e.orig.src, e.zone())
	if !ok {
		return nil
	}
	return &x.targets[i]
}

// passes says whether an entry goes already.
func (x *evictor) passes(e *entry) bool { return e.goes() && !x.atOnce }

// stays says whether an entry of a target may not be touched.
func (x *evictor) stays(q *target, e *entry, at rank) bool {
	if at>>32 == rank(policy.Assured) &&
		(q.cap.SpareAssured || q.cap.SpareRecent && !x.silence.atLeast(e, recent) ||
			q.cap.SpareForward && x.forwards(q, e)) {
		return true
	}
	return x.spare.contains(e.orig.src)
}

// forwards says whether an entry is forwarded, and stays for it: unless it leads to an inside host and that may go.
// What is translated leads to one only if that is masqueraded, or what it says next would leave with its own address.
// Where nobody knows which side is inside, the source may be, and keeps it.
func (x *evictor) forwards(q *target, e *entry) bool {
	role := roleOf(e, x.own, x.inside)
	if !role.Forwarded() || !q.cap.TakeInward || role != policy.Inward {
		return role.Forwarded()
	}
	var reply tuple
	return e.status&statusDstNAT != 0 && (!reply.parse(e.bytes(e.replySpan)) || !x.inside.contains(reply.src))
}

// recent is how many seconds a conversation that just spoke counts as one that goes on.
const recent = 60

// count looks at an entry of the counting pass.
func (x *evictor) count(e *entry) bool {
	q := x.find(e)
	if q == nil || q.counted == nil || x.passes(e) || x.besides.retires(e) ||
		x.selection.frees(e) && !x.spare.contains(e.orig.src) {
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
	for i := range x.targets {
		q := &x.targets[i]
		if q.counted == nil {
			continue
		}
		q.counted.aim(q.fixed + q.counted.held - q.cap.Keep)
	}
}

// visit decides on one entry and queues what goes. It says whether the dump is still needed.
func (x *evictor) visit(e *entry) bool {
	if x.passes(e) || x.besides.visit(x.queue, e) {
		return x.queue.err == nil
	}
	if x.selection.frees(e) && !x.spare.contains(e.orig.src) {
		return x.queue.delete(e)
	}
	q := x.find(e)
	if q == nil {
		return true
	}
	at := q.rank(e)
	switch stays := x.stays(q, e, at); {
	case q.counted != nil:
		if !stays && q.counted.takes(at) {
			x.take(q, e)
		}
	case stays:
		x.fix(q)
	case q.fixed+q.ranks.len() < q.cap.Keep:
		if !q.ranks.push(e, at) {
			x.fix(q) // it has attributes nobody knows yet: leave it alone
		}
	default:
		x.contest(q, e, at)
	}
	return x.queue.err == nil
}

// fix counts an entry that stays, which may cost another one its place.
func (x *evictor) fix(q *target) {
	q.fixed++
	if q.fixed+q.ranks.len() > q.cap.Keep {
		if q.ranks.len() == 0 {
			return
		}
		at, r := q.ranks.least()
		x.takeRecord(q, at, r)
		q.ranks.drop()
	}
}

// contest deletes e, or the least valuable entry kept so far if that is worth less.
func (x *evictor) contest(q *target, e *entry, at rank) {
	if q.ranks.len() > 0 {
		if least, r := q.ranks.least(); least < at {
			x.takeRecord(q, least, r)
			q.ranks.replaceLeast(e, at)
			return
		}
	}
	x.take(q, e)
}

// take queues the deletion of a target's entry.
func (x *evictor) take(q *target, e *entry) {
	if x.comebacks != nil {
		x.comebacks.take(q.cap.Source(), e)
	}
	x.queue.delete(e)
}

// takeRecord is take for what is remembered of an entry.
func (x *evictor) takeRecord(q *target, at rank, r *record) {
	if x.comebacks != nil && policy.Class(at>>32) == policy.Assured {
		x.comebacks.takeRecord(q.cap.Source(), r)
	}
	x.queue.deleteRecord(r)
}
