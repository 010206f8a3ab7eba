package agent

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"ctguard/agent/conntrack"
	"ctguard/agent/control"
	"ctguard/policy"
)

// Bounds of looking at the table. A whole scan of 65 536 entries takes a tenth of the budget on a
// machine of 2020; what does not fit ends as a sample.
const (
	scanBudget = 500 * time.Millisecond // of processor time
	sampleSize = 5_000                  // entries: enough for what the table consists of, give or take 1.4 %
	calmShare  = 80                     // one part in this many of the time goes into scans and evictions at most
	hurryShare = 3                      // the same while the table is about to fill up
	hurryPause = 500 * time.Millisecond // the least between two of them then: flows a second can't be told from less
	// sources a scan lists for each that can be limited: more than that fold into networks
	listedPerLimit = 4
	minScanPause   = 200 * time.Millisecond
	retimeDelay    = time.Second
	retimeGrowing  = 3 * time.Second  // the same while the table grows: an eviction may do it on its way
	idlePause      = 10 * time.Second // between samples at level 0, of a table that is half full
	samplePause    = 2 * time.Second
	purgePause     = 20 * time.Millisecond
	purgeRest      = 2 * time.Second // the longest pause of purges that bring nothing
	purgeShare     = 2               // one part in this many of a core goes into purges of handshakes at most
	retirePause    = time.Second
	retireShare    = 120              // one part in this many of a core goes into retiring finished entries at most
	retireHurry    = 10               // the same while the table is about to be full
	retireRest     = 30 * time.Second // the longest pause where there are none
	learnSize      = 50_000           // entries of a scan to learn from: all of most tables
	learnShare     = 1000             // one part in this many of the time goes into those
	learnPause     = 3 * time.Second  // between the first two of them; twice as long each time, up to the next
	learnRest      = time.Minute
	eagerScans     = 5           // so many of them don't count their cost
	staleCensus    = time.Second // while the table grows
)

// walk is one pass over the table, with all that it needs to know: it runs beside the loop, which it doesn't
// see. It returns what it learnt as a function for the loop to run.
type walk interface {
	do(context.Context, walker) func(*loop)
}

// walker is what walks are done with. It belongs to the goroutine that walks, and to whoever has waited for
// that to end.
type walker struct {
	scanner scanner
	mover   mover
}

// scanner looks at who holds the table; *conntrack.Table is one.
type scanner interface {
	Scan(context.Context, conntrack.ScanOptions) (*policy.Census, error)
}

// run carries walks out, one at a time.
func (w walker) run(ctx context.Context, walks <-chan walk, walked chan<- func(*loop)) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case next := <-walks:
			walked <- next.do(ctx, w)
		}
	}
}

// walks is what the loop knows of its walks over the table. Only one is under way at a time.
type walks struct {
	walking    bool
	setOutAt   time.Time              // when that began
	census     *policy.Census         // the newest scan
	fresh      bool                   // no tick has seen census yet
	holders    *control.HoldersStatus // of it, for clients
	held       map[policy.Source]int  // likewise what each source held; nil until somebody is limited
	learnt     int                    // scans that taught something so far
	learning   time.Time              // when the last scan to learn from began
	caps       []policy.Cap           // what capsOf decided: kept until it is carried out
	capsOf     *policy.Census
	evictedFor *policy.Census
	evicting   time.Duration // how long evictions since that census took
	freed      map[policy.Selector]bool
	loosened   map[policy.Selector]bool // forwarded services whose entries check no windows
	purged     backoff
	unfinished time.Time // when the newest purge of handshakes set out
	finished   backoff
	// what that purge cost in CPU time
	unfinishedCost time.Duration
	// of the newest pass over finished entries: what it cost in CPU time, and after which silence they were wanted
	finishedCost, finishedAfter time.Duration

	retired    uint64    // entries
	adopted    time.Time // when the newest adoption that has ended began
	adoptAgain time.Time // after a failure, when to try again
	retimedTo  map[string]int
	retimeFrom time.Time // since when other timeouts are wanted
	retimed    uint64    // entries
}

// nextWalk picks the most urgent walk that is due; nil when none is.
func (l *loop) nextWalk(now time.Time) walk {
	if w := l.adoption(); w != nil {
		return w
	}
	if w := l.loosening(); w != nil {
		return w
	}
	if l.fresh {
		return nil // the tick that is due now decides what the newest scan asks for
	}
	if w := l.eviction(now); w != nil { // it is due only where what is finished was not enough
		return w
	}
	if l.decision.Hurry && l.decision.Scan == policy.WholeScan {
		if w := l.scanning(now); w != nil { // who fills the table ends it, if they can be told
			return w
		}
	}
	if w := l.purging(now); w != nil {
		return w
	}
	if w := l.retiring(now); w != nil {
		return w
	}
	// While the rules can't be written, what is freed is still tracked: leave it where it is.
	if _, failing := l.troubles["rules"]; !failing {
		if w := l.freeing(); w != nil {
			return w
		}
	}
	if l.decision.Hurry || l.decision.Growing && (l.census == nil || now.Sub(l.census.Time) >= staleCensus) {
		if w := l.scanning(now); w != nil { // what a flood consists of decides more than how long its entries last
			return w
		}
	}
	if w := l.retiming(now); w != nil {
		return w
	}
	return l.scanning(now)
}

// keepCaps keeps what a census decided until the eviction that it asks for is due: another walk may be under way now.
func (l *loop) keepCaps(o policy.Observation) {
	if o.Census != nil {
		l.caps, l.capsOf = l.decision.Posture.Caps, o.Census
	} else if len(l.decision.Posture.Limits) == 0 {
		l.caps = nil // the step was taken back meanwhile
	}
}

// eviction takes what sources hold above their caps out of the table, once per census.
func (l *loop) eviction(now time.Time) walk {
	caps := l.caps
	if len(caps) == 0 || l.census == nil || l.capsOf != l.census || l.evictedFor == l.census {
		return nil // what a newer census says is decided at the next tick
	}
	l.evictedFor = l.census
	e := conntrack.Eviction{Caps: caps, Spare: l.decision.Posture.Allow, Timeouts: l.inForce(), Retimed: l.given(now),
		OneSided: l.decision.Posture.OneSided, Own: l.facts.Local, Inside: l.facts.Inside,
		Besides: l.besides(now)}
	return evictWalk{e, l.census, policy.Evict,
		fmt.Sprintf("%%d entries of %d heavy sources above their fair share", len(caps))}
}

// besides is what an eviction does on its way, because it is due as well.
func (l *loop) besides(now time.Time) *conntrack.Besides {
	b := &conntrack.Besides{Retire: l.retirement(now), Retime: l.shortening()}
	if b.Retire == nil && b.Retime == nil {
		return nil
	}
	return b
}

// inForce returns the settings as they are: the administrator's, and over them what is wanted of them.
func (l *loop) inForce() map[string]int {
	all := maps.Clone(l.facts.Admin)
	if all == nil {
		all = make(map[string]int)
	}
	maps.Copy(all, l.decision.Posture.Settings)
	return all
}

// given returns the shortest timeouts that existing entries were given and may have still. Where the note of them can't
// be read, until the next one, they may have been given the least that is ever given: then nobody is taken for idle
// wrongly.
func (l *loop) given(now time.Time) map[string]int {
	given, err := l.state.Retimed(now)
	if err != nil {
		l.trouble("note of timeouts", err)
		return l.config.Policy.Floors
	}
	return given
}

// freeing takes the entries of selectors out of the table that were untracked for good.
func (l *loop) freeing() walk {
	var due []policy.Selector
	freed := make(map[policy.Selector]bool)
	for _, n := range l.decision.Posture.Notrack {
		if n.Stage != policy.Freed {
			continue
		}
		freed[n.Selector] = true
		if !l.freed[n.Selector] {
			due = append(due, n.Selector)
		}
	}
	l.freed = freed
	if len(due) == 0 {
		return nil
	}
	own := l.facts.Own
	e := conntrack.Eviction{Selectors: due, Local: func(addr netip.Addr) bool { return slices.Contains(own, addr) }}
	return evictWalk{e, l.census, policy.Notrack, fmt.Sprintf("%%d entries of %d untracked selectors freed", len(due))}
}

// evictWalk carries an eviction out and tells of it.
type evictWalk struct {
	eviction conntrack.Eviction
	census   *policy.Census
	step     policy.StepName // whose work it is
	format   string          // of the reason, for the number of entries
}

func (e evictWalk) do(ctx context.Context, w walker) func(*loop) {
	start := time.Now()
	freed, err := w.mover.evict(ctx, e.eviction, e.census)
	took := time.Since(start)
	return func(l *loop) {
		if b := e.eviction.Besides; b == nil {
			l.evicting += took
		} else {
			l.evicting += min(took, e.census.Took) // what it did besides is not its own time
			l.retimed += uint64(b.Retimed)
			if b.Retire != nil {
				l.retired += uint64(b.Retired)
				l.finished.worked(time.Now(), b.Retired >= worthAWalk, retirePause, retireRest)
				l.finishedCost = 0 // the eviction's
			}
		}
		l.trouble("evict", err)
		if freed > 0 {
			l.emit(policy.Event{Kind: policy.EvictEvent, Step: e.step, Entries: freed, Reason: fmt.Sprintf(e.format, freed)})
		}
	}
}

// retiming shortens what existing entries have left when the wanted timeouts have become shorter, a moment
// later: they follow pressure in several steps, and one walk serves them all.
func (l *loop) retiming(now time.Time) walk {
	if maps.Equal(l.shortened(), l.retimedTo) {
		l.retimeFrom = time.Time{}
		return nil
	}
	if l.retimeFrom.IsZero() {
		l.retimeFrom = now
	}
	delay := retimeDelay
	if l.decision.Growing {
		delay = retimeGrowing
	}
	if now.Sub(l.retimeFrom) < delay {
		return nil
	}
	if r := l.shortening(); r != nil {
		return retimeWalk{*r}
	}
	return nil
}

// shortened returns the timeouts that are wanted.
func (l *loop) shortened() map[string]int {
	wanted := maps.Clone(l.decision.Posture.Settings)
	maps.DeleteFunc(wanted, func(name string, _ int) bool { _, timeout := l.config.Policy.Floors[name]; return !timeout })
	return wanted
}

// shortening takes the timeouts that are wanted for those of all entries, and returns how that becomes true; nil where
// none is shorter than before.
func (l *loop) shortening() *conntrack.Retiming {
	wanted, before := l.shortened(), l.retimedTo
	l.retimeFrom, l.retimedTo = time.Time{}, wanted
	shorter := maps.Clone(wanted)
	maps.DeleteFunc(shorter, func(name string, value int) bool { was, ok := before[name]; return ok && value >= was })
	if len(shorter) == 0 {
		return nil
	}
	inForce := maps.Clone(l.facts.Admin)
	if inForce == nil {
		inForce = make(map[string]int)
	}
	maps.Copy(inForce, before)
	l.trouble("note of timeouts", l.state.NoteRetimed(shorter, time.Now()))
	return &conntrack.Retiming{Timeouts: shorter, Before: inForce, Spare: l.decision.Posture.Allow}
}

// retimeWalk shortens what entries have left.
type retimeWalk struct{ retiming conntrack.Retiming }

func (r retimeWalk) do(ctx context.Context, w walker) func(*loop) {
	n, err := w.mover.retime(ctx, r.retiming)
	return func(l *loop) {
		l.retimed += uint64(n)
		l.trouble("retime", err)
	}
}
