package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/time/rate"

	"ctguard/agent/conntrack"
	"ctguard/policy"
)

// Bounds of looking at the table. A whole scan of 65 536 entries takes a tenth of the budget on a
// machine of 2020; what does not fit ends as a sample.
const (
	scanBudget     = 500 * time.Millisecond
	sampleSize     = 5_000                  // entries: enough for what the table consists of, give or take 1.4 %
	calmShare      = 40                     // one part in this many of the time goes into scans and evictions at most
	hurryShare     = 6                      // the same while the table is about to fill up, in the long run
	hurryBurst     = time.Second            // of them that may come at once then, at an onset
	hurryPause     = 500 * time.Millisecond // between two of them then: flows a second can't be told from less
	listedPerLimit = 4                      // sources a scan lists for each that can be held back: more than that fold into networks
	minScanPause   = 200 * time.Millisecond
	retimePause    = time.Second      // timeouts follow pressure in several steps: one walk serves them all
	idlePause      = 10 * time.Second // between samples at level 0, of a table that is half full
	samplePause    = 2 * time.Second
	purgePause     = 20 * time.Millisecond
	staleCensus    = time.Second // while the table grows
)

// walk is one pass over the table; it runs beside the loop. It returns what it learnt as a function
// that the loop runs.
type walk func(context.Context) func(*Agent)

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
	if now.Sub(a.retimedAt) >= retimePause {
		if w := a.retiming(); w != nil {
			a.retimedAt = now
			return w
		}
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
	evict := a.evict(e, func(freed conntrack.Evicted) policy.Event {
		return policy.Event{Kind: policy.EvictEvent, Step: policy.Evict, Entries: freed.Entries,
			Reason: fmt.Sprintf("%d entries of %d heavy sources above their fair share", freed.Entries, len(caps))}
	})
	return func(ctx context.Context) func(*Agent) {
		start := time.Now()
		tell := evict(ctx)
		took := time.Since(start)
		return func(a *Agent) {
			a.evicting = took
			a.spend(took)
			tell(a)
		}
	}
}

// newAllowance bounds the nanoseconds that go into scans, and into evicting what they find.
func newAllowance() *rate.Limiter {
	return rate.NewLimiter(rate.Limit(time.Second)/hurryShare, int(hurryBurst))
}

// spend takes what a walk took from the allowance, which may go below zero.
func (a *Agent) spend(took time.Duration) {
	for ; took > 0; took -= hurryBurst {
		a.scans.ReserveN(time.Now(), int(min(took, hurryBurst)))
	}
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
		freed, err := a.actuator.evict(ctx, e, census)
		return func(a *Agent) {
			a.trouble("evict", err)
			if freed.Entries > 0 {
				a.emit(tell(freed))
			}
		}
	}
}

// retiming shortens what existing entries have left when the wanted timeouts have become shorter.
func (a *Agent) retiming() walk {
	wanted := make(map[string]int)
	for name, value := range a.decision.Posture.Settings {
		if _, timeout := a.config.Policy.Floors[name]; timeout {
			wanted[name] = value
		}
	}
	if maps.Equal(wanted, a.retimedTo) {
		return nil
	}
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
	switch {
	case a.census == nil:
		pause = 0
	case a.decision.Hurry:
		pause = max(pause, hurryPause)
	default:
		pause = max(pause, calmShare*(a.census.Took+a.evicting))
	}
	if a.scans.TokensAt(now) < 0 || a.census != nil && now.Sub(a.census.Time) < pause {
		return nil
	}
	return func(ctx context.Context) func(*Agent) {
		census, err := a.table.Scan(ctx, options)
		return func(a *Agent) {
			if a.trouble("scan", err); err == nil {
				a.spend(census.Took)
				a.census, a.fresh, a.evicting = census, true, 0
			}
		}
	}
}
