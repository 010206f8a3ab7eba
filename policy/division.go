package policy

import (
	"fmt"
	"math"
	"net/netip"
	"slices"
	"time"
)

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
	f.blame = blame{}
	for i := range accounts {
		a := &accounts[i]
		a.keepHeld, a.keepPassing, a.keepOpens = fairHeld*a.weight, fairPassing*a.weight, fairOpens*a.weight
		a.why = a.reason(census, c)
		if a.passing > a.keepPassing && (a.answered() >= ownAddress || a.accountable(c)) {
			f.blame.heavy += a.passing
			if a.why != "" {
				f.blame.due += a.passing
			}
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

// comparableFor is how far two censuses may lie apart for their difference to be a rate. What came and went
// between them is missing, so a long time only makes sources look slower.
const comparableFor = 30 * time.Second

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
	// Who is never answered may be somebody else's address: its entries are swept away, but it is not
	// held back.
	if a.answered() < ownAddress && !a.accountable(c) {
		return ""
	}
	return fmt.Sprintf("opens %.0f flows a second, fair share %.0f", a.opens, a.keepOpens)
}

// accountable reports whether a source answers for what goes out in its name, answered or not. Inside a gateway that is one
// address: a network behind it is everybody's, and one of them may use all its addresses.
func (a *account) accountable(c Config) bool {
	return c.BanUnreplied && (c.Profile != NATGateway || a.Prefix.IsSingleIP())
}

// answered returns the part of a source's entries that saw an answer and finished a handshake.
func (a *account) answered() float64 {
	return 1 - float64(a.Classes[Unreplied]+a.Classes[HalfOpen])/float64(max(a.Entries, 1))
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
