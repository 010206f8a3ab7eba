package policy

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"net/netip"
	"slices"
	"time"
)

// offenders finds the heavy sources of a census and remembers whom it holds back.
type offenders struct {
	known map[netip.Prefix]*offence
	caps  []Cap
	rate  int  // new flows per second that a limited source may open
	more  bool // more sources were due than may be limited
}

// offence is what is remembered of one source.
type offence struct {
	limit   Limit
	strikes int // how often it was limited, each time for twice as long
	entries int // what it held when it was last found heavy
}

// heavy is a source above its fair share.
type heavy struct {
	Holding
	entries int     // estimate of what it holds in the table
	keep    int     // its fair share
	lower   int     // it holds at least this many, whatever the sample's error
	twoWay  float64 // the part of its entries that saw an answer
}

// judge takes a census in: it limits heavy sources, renews those that still offend and sets how
// many entries each may keep.
func (f *offenders) judge(o Observation, c Config) []Event {
	found, share := findHeavy(o, c)
	if f.more = len(found) > c.MaxLimited; f.more {
		found = found[:c.MaxLimited]
	}
	f.rate = limitRate(share, c)
	f.caps = f.caps[:0]
	var events []Event
	for _, h := range found {
		limited := h.twoWay >= 0.25 || c.BanUnreplied
		// A source that never answered may be somebody else's address: its unreplied entries are
		// purged, but it is not held back.
		f.caps = append(f.caps, Cap{h.Prefix, h.keep, c.SpareAssured || !limited})
		if limited {
			events = f.hold(events, o.Time, h, c)
		}
	}
	return summed(events)
}

// mostEvents is how many limits of one tick are told one by one.
const mostEvents = 20

// summed keeps the first limits of a tick and puts the rest into one event, so that an attack from
// thousands of sources doesn't flood the log too.
func summed(events []Event) []Event {
	if len(events) <= mostEvents {
		return events
	}
	rest := Event{Kind: LimitEvent, Step: Evict}
	for _, e := range events[mostEvents:] {
		rest.Entries += e.Entries
	}
	rest.Reason = fmt.Sprintf("and %d more sources, with %d entries", len(events)-mostEvents, rest.Entries)
	return append(events[:mostEvents:mostEvents], rest)
}

// findHeavy returns the sources above their fair share, largest excess first, and the share.
func findHeavy(o Observation, c Config) ([]heavy, float64) {
	census := o.Census
	scale := float64(o.Count) / float64(max(census.Seen, 1))
	rest := scale * float64(census.Rest.Entries)
	shares := make([]share, 0, len(census.Sources))
	holdings := make([]Holding, 0, len(census.Sources))
	for _, s := range census.Sources {
		entries := scale * float64(s.Entries)
		if overlapsAny(o.Allow, s.Prefix) {
			rest += entries
			continue
		}
		shares = append(shares, share{s.Prefix, entries, c.weight(s.Prefix)})
		holdings = append(holdings, s)
	}
	fair := fairShare(shares, rest, c.Target*float64(o.Capacity)/100)
	if math.IsInf(fair, 1) {
		return nil, fair
	}
	fair = max(fair, float64(c.Floor))
	var found []heavy
	for i, s := range shares {
		keep := int(fair * s.weight)
		_, lower, _ := census.Estimate(holdings[i].Entries)
		if lower > keep {
			answered := holdings[i].Entries - holdings[i].Classes[Unreplied] - holdings[i].Classes[HalfOpen]
			found = append(found, heavy{holdings[i], int(s.entries), keep, lower, float64(answered) / float64(holdings[i].Entries)})
		}
	}
	slices.SortFunc(found, func(a, b heavy) int {
		return cmp.Or(cmp.Compare(b.lower-b.keep, a.lower-a.keep), a.Prefix.Addr().Compare(b.Prefix.Addr()))
	})
	return found, fair
}

// hold limits one heavy source, or renews its limit.
func (f *offenders) hold(events []Event, now time.Time, h heavy, c Config) []Event {
	if f.known == nil {
		f.known = make(map[netip.Prefix]*offence)
	}
	of := f.known[h.Prefix]
	if of == nil {
		of = &offence{limit: Limit{Prefix: h.Prefix}}
		f.known[h.Prefix] = of
	}
	of.entries = h.entries
	active := now.Before(of.limit.Until)
	if !active {
		of.strikes++
	}
	span := min(c.MaxLimitFor, c.LimitFor<<min(of.strikes-1, 20))
	if active && of.limit.Until.Sub(now) > span/2 {
		return events
	}
	of.limit.Until = now.Add(span)
	if active {
		return events
	}
	of.limit.Kind = LimitNew
	if h.twoWay < 0.05 {
		of.limit.Kind = Block // nothing of it would go on
	}
	of.limit.Reason = fmt.Sprintf("%d entries, fair share %d; %.0f %% answered", h.entries, h.keep, 100*h.twoWay)
	return append(events, Event{Kind: LimitEvent, Step: Evict, Prefix: h.Prefix, Entries: h.entries,
		Reason: fmt.Sprintf("%s for %s: %s", of.limit.Kind, span, of.limit.Reason)})
}

// limits returns the limits in force, in the order of their prefixes, and forgets sources whose
// last limit ended longer ago than it lasted.
func (f *offenders) limits(now time.Time, c Config) []Limit {
	var limits []Limit
	for prefix, of := range f.known {
		span := min(c.MaxLimitFor, c.LimitFor<<min(of.strikes-1, 20))
		switch {
		case now.Before(of.limit.Until):
			limits = append(limits, of.limit)
		case now.Sub(of.limit.Until) > 2*span:
			delete(f.known, prefix)
		}
	}
	slices.SortFunc(limits, func(a, b Limit) int { return a.Prefix.Addr().Compare(b.Prefix.Addr()) })
	return limits
}

// release ends every limit; strikes are remembered.
func (f *offenders) release(now time.Time) {
	for _, of := range f.known {
		if now.Before(of.limit.Until) {
			of.limit.Until = now
		}
	}
	f.caps, f.more = nil, false
}

// forget drops all memory of the sources inside prefix.
func (f *offenders) forget(prefix netip.Prefix) {
	maps.DeleteFunc(f.known, func(p netip.Prefix, _ *offence) bool { return p.Overlaps(prefix) })
	f.caps = slices.DeleteFunc(f.caps, func(c Cap) bool { return c.Prefix.Overlaps(prefix) })
}

// flowLife is how long a new flow that nobody closes stays in the table, in seconds: the default
// of nf_conntrack_udp_timeout, the shortest of those that a flood makes use of.
const flowLife = 30

// limitRate returns how many new flows a second keep a source at its fair share, as a power of two
// so that a share that drifts doesn't change the rule each time.
func limitRate(share float64, c Config) int {
	rate := 1
	for rate*2 <= c.LimitRate && float64(rate*2) <= share/flowLife {
		rate *= 2
	}
	return rate
}

// weight returns how many fair shares the holder of prefix has; the longest match wins.
func (c Config) weight(prefix netip.Prefix) float64 {
	weight, bits := 1.0, -1
	for _, w := range c.Weights {
		if w.Prefix.Bits() > bits && w.Prefix.Bits() <= prefix.Bits() && w.Prefix.Contains(prefix.Addr()) {
			weight, bits = w.Weight, w.Prefix.Bits()
		}
	}
	return weight
}

// overlapsAny reports whether any of prefixes shares an address with p: a source that holds but
// one allowlisted address is left alone.
func overlapsAny(prefixes []netip.Prefix, p netip.Prefix) bool {
	return slices.ContainsFunc(prefixes, p.Overlaps)
}
