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
	scanBudget     = 500 * time.Millisecond
	sampleSize     = 5_000                  // entries: enough for what the table consists of, give or take 1.4 %
	calmShare      = 40                     // one part in this many of the time goes into scans and evictions at most
	hurryShare     = 3                      // the same while the table is about to fill up
	hurryPause     = 500 * time.Millisecond // the least between two of them then: flows a second can't be told from less
	listedPerLimit = 4                      // sources a scan lists for each that can be held back: more than that fold into networks
	minScanPause   = 200 * time.Millisecond
	retimeDelay    = time.Second
	idlePause      = 10 * time.Second // between samples at level 0, of a table that is half full
	samplePause    = 2 * time.Second
	purgePause     = 20 * time.Millisecond
	staleCensus    = time.Second // while the table grows
)

// walk is one pass over the table; it runs beside the loop. It returns what it learnt as a function
// that the loop runs.
type walk func(context.Context) func(*Agent)

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
func (a *Agent) nextWalk(now time.Time) walk {
	if w := a.adoption(); w != nil {
		return w
	}
	if w := a.eviction(); w != nil {
		return w
	}
	if w := a.purging(now); w != nil {
		return w
	}
	// While the rules can't be written, what is freed is still tracked: leave it where it is.
	if _, failing := a.troubles["rules"]; !failing {
		if w := a.freeing(); w != nil {
			return w
		}
	}
	if a.decision.Growing && (a.census == nil || now.Sub(a.census.Time) >= staleCensus) {
		if w := a.scanning(now); w != nil { // what a flood consists of decides more than how long its entries last
			return w
		}
	}
	if w := a.retiming(now); w != nil {
		return w
	}
	return a.scanning(now)
}

// eviction takes what sources hold above their caps out of the table, once per census.
func (a *Agent) eviction() walk {
	caps := a.decision.Posture.Caps
	if len(caps) == 0 || a.evictedFor == a.census {
		return nil
	}
	a.evictedFor = a.census
	e := conntrack.Eviction{Caps: caps, Spare: a.facts.Allow}
	return a.evict(e, func(freed conntrack.Evicted) policy.Event {
		return policy.Event{Kind: policy.EvictEvent, Step: policy.Evict, Entries: freed.Entries,
			Reason: fmt.Sprintf("%d entries of %d heavy sources above their fair share", freed.Entries, len(caps))}
	})
}

// purging deletes what a flood left of the classes that are to be purged.
func (a *Agent) purging(now time.Time) walk {
	classes := a.decision.Posture.Purges
	if len(classes) == 0 || now.Sub(a.purged) < purgePause || a.purged.After(a.last.Time) {
		return nil
	}
	a.purged = now
	spare := a.facts.Allow
	return func(ctx context.Context) func(*Agent) {
		var err error
		for _, class := range classes {
			err = errors.Join(err, a.actuator.purge(ctx, class, spare))
		}
		return func(a *Agent) {
			a.purged, a.due = time.Now(), true // what is left shows at the next tick
			a.trouble("purge", err)
		}
	}
}

// freeing takes the entries of selectors out of the table that were untracked for good.
func (a *Agent) freeing() walk {
	var due []policy.Selector
	freed := make(map[policy.Selector]bool)
	for _, n := range a.decision.Posture.Notrack {
		if n.Stage != policy.Freed {
			continue
		}
		freed[n.Selector] = true
		if !a.freed[n.Selector] {
			due = append(due, n.Selector)
		}
	}
	a.freed = freed
	if len(due) == 0 {
		return nil
	}
	own := a.facts.own
	e := conntrack.Eviction{Selectors: due, Local: func(addr netip.Addr) bool { return slices.Contains(own, addr) }}
	return a.evict(e, func(freed conntrack.Evicted) policy.Event {
		return policy.Event{Kind: policy.EvictEvent, Step: policy.NotrackStep, Entries: freed.Entries,
			Reason: fmt.Sprintf("%d entries of %d untracked selectors freed", freed.Entries, len(due))}
	})
}

// evict returns the walk that carries an eviction out and tells of it.
func (a *Agent) evict(e conntrack.Eviction, tell func(conntrack.Evicted) policy.Event) walk {
	census := a.census
	return func(ctx context.Context) func(*Agent) {
		start := time.Now()
		freed, err := a.actuator.evict(ctx, e, census)
		took := time.Since(start)
		return func(a *Agent) {
			a.evicting += took
			a.trouble("evict", err)
			if freed.Entries > 0 {
				a.emit(tell(freed))
			}
		}
	}
}

// retiming shortens what existing entries have left when the wanted timeouts have become shorter, a moment
// later: they follow pressure in several steps, and one walk serves them all.
func (a *Agent) retiming(now time.Time) walk {
	wanted := make(map[string]int)
	for name, value := range a.decision.Posture.Settings {
		if _, timeout := a.config.Policy.Floors[name]; timeout {
			wanted[name] = value
		}
	}
	if maps.Equal(wanted, a.retimedTo) {
		a.retimeFrom = time.Time{}
		return nil
	}
	if a.retimeFrom.IsZero() {
		a.retimeFrom = now
	}
	if now.Sub(a.retimeFrom) < retimeDelay {
		return nil
	}
	a.retimeFrom = time.Time{}
	shorter := make(map[string]int)
	for name, value := range wanted {
		if was, ok := a.retimedTo[name]; !ok || value < was {
			shorter[name] = value
		}
	}
	a.retimedTo = wanted
	if len(shorter) == 0 {
		return nil
	}
	spare := a.facts.Allow
	return func(ctx context.Context) func(*Agent) {
		n, err := a.actuator.retime(ctx, shorter, spare)
		return func(a *Agent) {
			a.retimed += uint64(n)
			a.trouble("retime", err)
		}
	}
}

// scanning looks at who holds the table, as often as the time budget allows.
func (a *Agent) scanning(now time.Time) walk {
	options := conntrack.ScanOptions{Budget: scanBudget, V4Bits: a.config.V4Bits, V6Bits: a.config.V6Bits,
		MaxSources: listedPerLimit * a.config.Policy.MaxLimited}
	pause := minScanPause
	switch a.decision.Scan {
	case policy.NoScan:
		return nil
	case policy.SampleScan:
		options.Limit, pause = sampleSize, samplePause
		switch {
		case a.decision.Growing:
			pause = minScanPause
		case a.decision.Posture.Level == 0:
			pause = idlePause
		}
	case policy.WholeScan:
	}
	if a.census != nil && now.Sub(a.census.Time) < max(pause, a.rest(options.Limit)) {
		return nil
	}
	return func(ctx context.Context) func(*Agent) {
		census, err := a.table.Scan(ctx, options)
		return func(a *Agent) {
			if a.trouble("scan", err); err == nil {
				a.census, a.fresh, a.evicting = census, true, 0
			}
		}
	}
}

// rest returns how long to rest between the last census and one of so many entries, 0 for all: for the time
// that the last one and evicting what it found took, or as little as a sample will take.
func (a *Agent) rest(entries int) time.Duration {
	took := a.census.Took + a.evicting
	if a.decision.Hurry {
		return max(hurryPause, hurryShare*took)
	}
	if seen := a.census.Seen; entries > 0 && seen > entries {
		took = a.census.Took * time.Duration(entries) / time.Duration(seen)
	}
	return calmShare * took
}
