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
//
// An entry is held while it carries a conversation that lasts (assured), and passing otherwise: a
// handshake, one question and its answer, a connection that closes. A client that opens and closes
// many connections has many passing entries and holds none; they can be evicted at no harm. So a
// source is held back for what it holds, and for passing entries only where they come faster than
// they can be swept away.
type offenders struct {
	known map[netip.Prefix]*offence
	swept map[netip.Prefix]int // passing entries that each source was left with by the last census
	rest  float64              // passing entries of the sources that census did not list
	at    time.Time            // of that census
	last  []account            // how the table was divided then
	found bool                 // somebody was above a fair share, and the target is not reached yet
	heavy float64              // passing entries of all sources above the fair share then
	rate  int                  // new flows per second that a limited source may open
	more  bool                 // more sources were due than may be limited
}

// offence is what is remembered of one source.
type offence struct {
	limit   Limit
	strikes int // how often it was limited, each time for twice as long
}

// account is one source in the division of the table; numbers are estimates for the whole table.
type account struct {
	Holding
	weight        float64
	held, passing float64
	keepHeld      float64 // its fair share of each kind
	keepPassing   float64
	opens         float64 // new passing entries per second since the last census
	keepOpens     float64
	why           string // why it is held back; empty if it is not
}

// Parts of the division.
const (
	tolerance    = 1.25 // a source is held back only when it is this far above its share: shares waver
	passingPart  = 0.05 // part of the capacity that is kept for passing entries
	sweepPerPart = 0.05 // part of the capacity that may be swept away each second
	ownAddress   = 0.25 // part of a source's entries that must be answered for its address to be its own
	worthwhile   = 0.25 // part of the excess that the sources above their share must make up
	silent       = 0.05 // part of a source's entries that are answered below which nothing of it is worth letting through
)

// judge takes a census in: it limits heavy sources, renews those that still offend and returns how
// many entries each source above its share may keep.
func (f *offenders) judge(o Observation, c Config) ([]Cap, []Event) {
	accounts, share := f.divide(o, c)
	f.rate = limitRate(share, c)
	var due []account
	for _, a := range accounts {
		if a.why != "" {
			due = append(due, a)
		}
	}
	if len(due) > c.MaxLimited {
		due = fold(due, c)
	}
	var events []Event
	held := make(map[netip.Prefix]bool, len(due))
	for _, a := range due[:min(len(due), c.MaxLimited)] {
		held[a.Prefix] = true
		events = f.hold(events, o.Time, a, c)
	}
	events = summed(events)
	if more := len(due) - c.MaxLimited; more > 0 && !f.more {
		events = append(events, Event{Kind: DegradedEvent, Step: Evict,
			Reason: fmt.Sprintf("%d more sources should be held back than evict.max_limited (%d) allows: the largest are", more, c.MaxLimited)})
	}
	f.more = len(due) > c.MaxLimited
	return excess(accounts, held, c), events
}

// excess returns how many entries each source above its share may keep. Block, then evict: what a
// source holds goes only when it can't come back at once.
func excess(accounts []account, held map[netip.Prefix]bool, c Config) []Cap {
	var caps []Cap
	for _, a := range accounts {
		if a.held <= a.keepHeld && a.passing <= a.keepPassing {
			continue
		}
		keep := int(min(a.held, a.keepHeld) + min(a.passing, a.keepPassing))
		heldBack := held[a.Prefix] || held[c.folded(a.Prefix)]
		caps = append(caps, Cap{a.Prefix, max(keep, 1), c.SpareAssured || !heldBack, !heldBack && a.answered() >= ownAddress})
	}
	return caps
}

// foldFrom is how many heavy sources a network must have to be held back as one.
const foldFrom = 4

// fold puts heavy sources of one network together, when there are more than can be held back one by
// one, and returns them with the largest first.
func fold(due []account, c Config) []account {
	networks := make(map[netip.Prefix][]account)
	for _, a := range due {
		networks[c.folded(a.Prefix)] = append(networks[c.folded(a.Prefix)], a)
	}
	var list []account
	for network, members := range networks {
		if len(members) < foldFrom {
			list = append(list, members...)
			continue
		}
		sum := account{Holding: Holding{Prefix: network}}
		for _, a := range members {
			sum.Entries, sum.held, sum.passing = sum.Entries+a.Entries, sum.held+a.held, sum.passing+a.passing
			for class := range a.Classes {
				sum.Classes[class] += a.Classes[class]
			}
		}
		sum.why = fmt.Sprintf("%d heavy sources in it, with %.0f entries", len(members), sum.held+sum.passing)
		list = append(list, sum)
	}
	slices.SortFunc(list, func(a, b account) int {
		return cmp.Or(cmp.Compare(b.held+b.passing, a.held+a.passing), a.Prefix.Addr().Compare(b.Prefix.Addr()))
	})
	return list
}

// folded returns the network that a source is held back with when there are too many.
func (c Config) folded(p netip.Prefix) netip.Prefix {
	bits := c.FoldV6
	if p.Addr().Is4() {
		bits = c.FoldV4
	}
	return netip.PrefixFrom(p.Addr(), min(bits, p.Bits())).Masked()
}

// divide shares the table out among the sources of a census, the largest first, and returns the
// fair share of what is held.
func (f *offenders) divide(o Observation, c Config) ([]account, float64) {
	census := o.Census
	scale := float64(o.Count) / float64(max(census.Seen, 1))
	estimate := func(h Holding) (held, passing float64) {
		held = scale * float64(h.Classes[Assured])
		return held, scale*float64(h.Entries) - held
	}
	restHeld, restPassing := estimate(census.Rest)
	var accounts []account
	var held, passing []share
	for _, h := range census.Sources {
		a := account{Holding: h, weight: c.weight(h.Prefix)}
		a.held, a.passing = estimate(h)
		if overlapsAny(o.Allow, h.Prefix) {
			restHeld, restPassing = restHeld+a.held, restPassing+a.passing
			continue
		}
		accounts = append(accounts, a)
		held = append(held, share{a.held, a.weight})
		passing = append(passing, share{a.passing, a.weight})
	}
	capacity, floor := float64(o.Capacity), float64(c.Floor)
	target := capacity * c.Target / 100
	kept := min(passingPart*capacity, total(passing)+restPassing)
	fairHeld := worthwhileShare(held, restHeld, target-kept, floor)
	room := target - restHeld - taken(held, fairHeld)
	fairPassing := worthwhileShare(passing, restPassing, room, floor)
	fairOpens := f.opens(accounts, o, restPassing)
	f.heavy = 0
	for i := range accounts {
		a := &accounts[i]
		a.keepHeld, a.keepPassing, a.keepOpens = fairHeld*a.weight, fairPassing*a.weight, fairOpens*a.weight
		a.why = a.reason(census, c)
		if a.passing > a.keepPassing {
			f.heavy += a.passing
		}
	}
	if census.Whole {
		f.sweep(accounts, census.Time)
	}
	f.last = accounts
	return accounts, min(fairHeld, fairOpens*flowLife)
}

// worthwhileShare returns the fair share, not below a floor; +Inf, so that nobody is above it, where
// those above the floor make up but a small part of the excess. Then the flood comes from sources
// that each hold next to nothing (spoofed addresses), and taking from honest users would not stop it.
func worthwhileShare(shares []share, rest, target, floor float64) float64 {
	fair := max(floor, fairShare(shares, rest, target))
	all := total(shares)
	if all-taken(shares, fair) < worthwhile*(all+rest-target) {
		return math.Inf(1)
	}
	return fair
}

// comparableFor is how far two censuses may lie apart for their difference to be a rate: most passing
// entries last longer.
const comparableFor = 10 * time.Second

// opens works out how fast each source makes passing entries since the last census, and returns the
// fair share of what can be swept away. rest are the passing entries of sources that are not listed.
func (f *offenders) opens(accounts []account, o Observation, rest float64) float64 {
	if !o.Census.Whole {
		return math.Inf(1) // the difference of two samples is mostly chance
	}
	before := f.rest
	f.rest = rest
	span := o.Census.Time.Sub(f.at).Seconds()
	if f.swept == nil || span <= 0 || span > comparableFor.Seconds() {
		return math.Inf(1)
	}
	shares := make([]share, len(accounts))
	for i := range accounts {
		a := &accounts[i]
		a.opens = max(0, a.passing-float64(f.swept[a.Prefix])) / span
		shares[i] = share{a.opens, a.weight}
	}
	return worthwhileShare(shares, max(0, rest-before)/span, sweepPerPart*float64(o.Capacity), 1)
}

// sweep remembers how many passing entries each source is left with.
func (f *offenders) sweep(accounts []account, now time.Time) {
	f.swept, f.at = make(map[netip.Prefix]int, len(accounts)), now
	for _, a := range accounts {
		f.swept[a.Prefix] = int(min(a.passing, a.keepPassing))
	}
}

// reason says why a source is to be held back; it is empty when it is not. A decision against a
// source is taken on the lower bound of what it holds.
func (a *account) reason(census *Census, c Config) string {
	_, low, _ := census.Estimate(a.Classes[Assured])
	if float64(low) > tolerance*a.keepHeld {
		return fmt.Sprintf("holds %.0f entries, fair share %.0f", a.held, a.keepHeld)
	}
	if a.passing <= tolerance*a.keepPassing || a.opens <= tolerance*a.keepOpens {
		return ""
	}
	// A source that never answered may be somebody else's address: its entries are swept away, but
	// it is not held back.
	if a.answered() < ownAddress && !c.BanUnreplied {
		return ""
	}
	return fmt.Sprintf("opens %.0f flows a second, fair share %.0f", a.opens, a.keepOpens)
}

// answered returns the part of a source's entries that saw an answer and finished a handshake.
func (a *account) answered() float64 {
	return 1 - float64(a.Classes[Unreplied]+a.Classes[HalfOpen])/float64(max(a.Entries, 1))
}

// mostEvents is how many limits of one tick are told one by one: a screenful.
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

// hold limits one source, or renews its limit.
func (f *offenders) hold(events []Event, now time.Time, a account, c Config) []Event {
	if f.known == nil {
		f.known = make(map[netip.Prefix]*offence)
	}
	of := f.known[a.Prefix]
	if of == nil {
		of = &offence{limit: Limit{Prefix: a.Prefix}}
		f.known[a.Prefix] = of
	}
	active := now.Before(of.limit.Until)
	if !active {
		of.strikes++
	}
	span := of.span(c)
	if active && of.limit.Until.Sub(now) > span/2 {
		return events
	}
	of.limit.Until = now.Add(span)
	if active {
		return events
	}
	of.limit.Kind, of.limit.Reason = LimitNew, a.why
	if a.answered() < silent {
		of.limit.Kind = Block
	}
	return append(events, Event{Kind: LimitEvent, Step: Evict, Prefix: a.Prefix, Entries: int(a.held + a.passing),
		Reason: fmt.Sprintf("%s for %s: %s", of.limit.Kind, span, of.limit.Reason)})
}

// span returns how long a source's limit lasts.
func (of *offence) span(c Config) time.Duration {
	return min(c.MaxLimitFor, c.LimitFor<<min(of.strikes-1, 20))
}

// limits returns the limits in force, in the order of their prefixes, and forgets sources whose
// last limit ended longer ago than it lasted.
func (f *offenders) limits(now time.Time, c Config) []Limit {
	var limits []Limit
	for prefix, of := range f.known {
		switch {
		case now.Before(of.limit.Until):
			limits = append(limits, of.limit)
		case now.Sub(of.limit.Until) > 2*of.span(c):
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
	f.swept, f.last, f.more = nil, nil, false
}

// forget drops all memory of the sources inside prefix.
func (f *offenders) forget(prefix netip.Prefix) {
	maps.DeleteFunc(f.known, func(p netip.Prefix, _ *offence) bool { return p.Overlaps(prefix) })
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
