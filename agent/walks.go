package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"ctguard/agent/conntrack"
	"ctguard/policy"
)

// Bounds of looking at the table. A whole scan of 65 536 entries takes a tenth of the budget on a
// machine of 2020; what does not fit ends as a sample.
const (
	scanBudget = 500 * time.Millisecond
	sampleSize = 5_000                  // entries: enough for what the table consists of, give or take 1.4 %
	calmShare  = 40                     // one part in this many of the time goes into scans and evictions at most
	hurryShare = 3                      // the same while the table is about to fill up
	hurryPause = 500 * time.Millisecond // the least between two of them then: flows a second can't be told from less
	// sources a scan lists for each that can be held back: more than that fold into networks
	listedPerLimit = 4
	minScanPause   = 200 * time.Millisecond
	retimeDelay    = time.Second
	idlePause      = 10 * time.Second // between samples at level 0, of a table that is half full
	samplePause    = 2 * time.Second
	purgePause     = 20 * time.Millisecond
	staleCensus    = time.Second // while the table grows
)

// walk is one pass over the table; it runs beside the loop and must not touch it. It returns what it learnt
// as a function that the loop runs.
type walk func(context.Context, walker) func(*loop)

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
			walked <- next(ctx, w)
		}
	}
}

// walks is what the loop knows of its walks over the table. Only one is under way at a time.
type walks struct {
	walking    bool
	census     *policy.Census // the newest scan
	fresh      bool           // no tick has seen census yet
	evictedFor *policy.Census
	evicting   time.Duration // how long evictions since that census took
	freed      map[policy.Selector]bool
	purged     time.Time // when classes were last purged
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
	if w := l.eviction(); w != nil {
		return w
	}
	if w := l.purging(now); w != nil {
		return w
	}
	// While the rules can't be written, what is freed is still tracked: leave it where it is.
	if _, failing := l.troubles["rules"]; !failing {
		if w := l.freeing(); w != nil {
			return w
		}
	}
	if l.decision.Growing && (l.census == nil || now.Sub(l.census.Time) >= staleCensus) {
		if w := l.scanning(now); w != nil { // what a flood consists of decides more than how long its entries last
			return w
		}
	}
	if w := l.retiming(now); w != nil {
		return w
	}
	return l.scanning(now)
}

// eviction takes what sources hold above their caps out of the table, once per census.
func (l *loop) eviction() walk {
	caps := l.decision.Posture.Caps
	if len(caps) == 0 || l.evictedFor == l.census {
		return nil
	}
	l.evictedFor = l.census
	e := conntrack.Eviction{Caps: caps, Spare: l.facts.Allow}
	return l.evict(e, func(freed int) policy.Event {
		return policy.Event{Kind: policy.EvictEvent, Step: policy.Evict, Entries: freed,
			Reason: fmt.Sprintf("%d entries of %d heavy sources above their fair share", freed, len(caps))}
	})
}

// purging deletes what a flood left of the classes that are to be purged.
func (l *loop) purging(now time.Time) walk {
	classes := l.decision.Posture.Purges
	if len(classes) == 0 || now.Sub(l.purged) < purgePause || l.purged.After(l.last.Time) {
		return nil
	}
	l.purged = now
	spare := l.facts.Allow
	return func(ctx context.Context, w walker) func(*loop) {
		var err error
		for _, class := range classes {
			err = errors.Join(err, w.mover.purge(ctx, class, spare))
		}
		return func(l *loop) {
			l.purged, l.due = time.Now(), true // what is left shows at the next tick
			l.trouble("purge", err)
		}
	}
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
	return l.evict(e, func(freed int) policy.Event {
		return policy.Event{Kind: policy.EvictEvent, Step: policy.NotrackStep, Entries: freed,
			Reason: fmt.Sprintf("%d entries of %d untracked selectors freed", freed, len(due))}
	})
}

// evict returns the walk that carries an eviction out and tells of it.
func (l *loop) evict(e conntrack.Eviction, tell func(int) policy.Event) walk {
	census := l.census
	return func(ctx context.Context, w walker) func(*loop) {
		start := time.Now()
		freed, err := w.mover.evict(ctx, e, census)
		took := time.Since(start)
		return func(l *loop) {
			l.evicting += took
			l.trouble("evict", err)
			if freed > 0 {
				l.emit(tell(freed))
			}
		}
	}
}

// retiming shortens what existing entries have left when the wanted timeouts have become shorter, a moment
// later: they follow pressure in several steps, and one walk serves them all.
func (l *loop) retiming(now time.Time) walk {
	wanted := make(map[string]int)
	for name, value := range l.decision.Posture.Settings {
		if _, timeout := l.config.Policy.Floors[name]; timeout {
			wanted[name] = value
		}
	}
	if maps.Equal(wanted, l.retimedTo) {
		l.retimeFrom = time.Time{}
		return nil
	}
	if l.retimeFrom.IsZero() {
		l.retimeFrom = now
	}
	if now.Sub(l.retimeFrom) < retimeDelay {
		return nil
	}
	l.retimeFrom = time.Time{}
	shorter := make(map[string]int)
	for name, value := range wanted {
		if was, ok := l.retimedTo[name]; !ok || value < was {
			shorter[name] = value
		}
	}
	l.retimedTo = wanted
	if len(shorter) == 0 {
		return nil
	}
	spare := l.facts.Allow
	return func(ctx context.Context, w walker) func(*loop) {
		n, err := w.mover.retime(ctx, shorter, spare)
		return func(l *loop) {
			l.retimed += uint64(n)
			l.trouble("retime", err)
		}
	}
}

// scanning looks at who holds the table, as often as the time budget allows.
func (l *loop) scanning(now time.Time) walk {
	options := conntrack.ScanOptions{Budget: scanBudget, V4Bits: l.config.V4Bits, V6Bits: l.config.V6Bits,
		MaxSources: listedPerLimit * l.config.Policy.MaxLimited}
	pause := minScanPause
	switch l.decision.Scan {
	case policy.NoScan:
		return nil
	case policy.SampleScan:
		options.Limit, pause = sampleSize, samplePause
		switch {
		case l.decision.Growing:
			pause = minScanPause
		case l.decision.Posture.Level == 0:
			pause = idlePause
		}
	case policy.WholeScan:
	}
	if l.census != nil && now.Sub(l.census.Time) < max(pause, l.rest(options.Limit)) {
		return nil
	}
	return func(ctx context.Context, w walker) func(*loop) {
		census, err := w.scanner.Scan(ctx, options)
		return func(l *loop) {
			if l.trouble("scan", err); err == nil {
				l.census, l.fresh, l.evicting = census, true, 0
			}
		}
	}
}

// rest returns how long to rest between the last census and one of so many entries, 0 for all: for the time
// that the last one and evicting what it found took, or as little as a sample will take.
func (l *loop) rest(entries int) time.Duration {
	took := l.census.Took + l.evicting
	if l.decision.Hurry {
		return max(hurryPause, hurryShare*took)
	}
	if seen := l.census.Seen; entries > 0 && seen > entries {
		took = l.census.Took * time.Duration(entries) / time.Duration(seen)
	}
	return calmShare * took
}
