package policy

import (
	"fmt"
	"math"
	"net/netip"
	"slices"
	"time"
)

// usage is what one source uses of the table, and what its fair share is; numbers are estimates for the whole table.
type usage struct {
	Holding
	weight             float64
	assured, transient float64 // entries
	usual              Usual   // of both, on an ordinary day
	back               float64 // assured entries that were evicted and came back
	closing            float64 // transient entries of connections that close: what is finished goes first, whoever owns it
	inside             bool    // this host forwards for it
	keepAssured        float64 // its fair share of each kind
	keepTransient      float64
	opens              float64 // new transient entries per second since the last census
	keepOpens          float64
	why                string // why it is limited; empty if it is not
	butTCP             bool   // and TCP is not
	spared             bool   // what it opens too much of is purged instead
}

// Parts of the fair share.
const (
	tolerance     = 1.25 // a source is limited only when it is this far above its share: shares waver
	transientPart = 0.05 // part of the capacity that is kept for transient entries
	sweepPerPart  = 0.05 // part of the capacity that may be swept away each second
	ownAddress    = 0.25 // part of a source's entries that must be answered for its address to be its own
	worthwhile    = 0.25 // part of the excess that the sources above their share must make up
	silent        = 0.05 // part of a source's entries that are answered below which nothing of it is worth letting through
)

// shareOut shares the table out among the sources of a census, the largest first, and returns the share of assured
// entries that who has no usual holding gets. Each keeps what it usually has; see [divide].
func (f *offenders) shareOut(s situation) ([]usage, float64) {
	c, census := *s.cfg, s.Census
	usages, rest := measure(s)
	for i := range usages {
		usages[i].back = f.harm.keeps(usages[i], s)
	}
	capacity, floor, known := float64(s.Capacity), float64(c.Floor), s.ordinary.Known()
	target := capacity * c.Target / 100

	transient := claims(usages, func(a *usage) (has, usual float64) { return a.transient, a.usual.Transient })
	kept := min(transientPart*capacity, rest.transient+sum(transient))
	assured := claims(usages, func(a *usage) (has, usual float64) { return a.assured, a.usual.Assured })
	for i := range assured {
		assured[i].back = usages[i].back
	}
	ofAssured := divide(assured, rest.assured, target-kept, floor, known)
	room := target - rest.assured
	for i, cl := range assured {
		room -= min(cl.has, ofAssured.keep[i])
	}
	// Connections that close go first, whoever owns them: others need not make room for those of who is left alone, such
	// as a proxy on this host.
	open := rest.transient - rest.closing
	ofTransient := divide(transient, open, room, floor, known)
	ofOpens := f.opens(usages, s, open)

	f.suspects = suspects{}
	purges := s.purgesMost()
	for i := range usages {
		a := &usages[i]
		a.keepAssured, a.keepTransient, a.keepOpens = ofAssured.keep[i], ofTransient.keep[i], ofOpens.keep[i]
		a.butTCP = !a.inside && !a.provenHeavy()
		a.spared = purges && a.butTCP && a.usual != Usual{}
		a.why = a.reason(census, c)
		f.suspect(a, c)
	}
	if census.Whole {
		f.sweep(usages, census.Time)
	}
	f.last = usages
	return usages, min(ofAssured.share, ofOpens.share*flowLife)
}

// claims returns what the sources have of one thing.
func claims(usages []usage, of func(*usage) (has, usual float64)) []claim {
	list := make([]claim, len(usages))
	for i := range usages {
		has, usual := of(&usages[i])
		list[i] = claim{source: usages[i].Source(), has: has, usual: usual, weight: usages[i].weight}
	}
	return list
}

// sum returns what all claims have.
func sum(list []claim) (all float64) {
	for _, c := range list {
		all += c.has
	}
	return all
}

// measure estimates what each source uses, and puts what nobody can be asked for into the rest: the sources that the
// census does not list, and those that are left alone.
func measure(s situation) (usages []usage, rest usage) {
	// Only a sample stands for more than it saw. Where the kernel counts more entries than it lists (dying, unconfirmed,
	// expired ones), nobody is to blame for the difference.
	scale := 1.0
	if !s.Census.Whole {
		scale = float64(s.Count) / float64(max(s.Census.Seen, 1))
	}
	part := s.ordinary.part()
	estimate := func(h Holding) usage {
		a := usage{Holding: h, weight: s.cfg.weight(h.Prefix), assured: scale * float64(h.Classes[Assured])}
		a.transient = scale*float64(h.Entries) - a.assured
		a.closing = scale * float64(h.Classes[Closing])
		a.usual = s.ordinary.Usual(h.Source())
		a.usual.Assured, a.usual.Transient = part*a.usual.Assured, part*a.usual.Transient
		return a
	}
	rest = estimate(s.Census.Rest)
	for _, h := range s.Census.Sources {
		a := estimate(h)
		a.inside = s.inside(h.Prefix)
		if overlapsAny(s.Allow, h.Prefix) || overlapsAny(s.released, h.Prefix) {
			rest.assured, rest.transient = rest.assured+a.assured, rest.transient+a.transient
			rest.closing += a.closing
			continue
		}
		usages = append(usages, a)
	}
	return usages, rest
}

// suspect counts the transient entries of a source that is above its share and can be limited. Who usually is here, and
// may not have sent what is asked in its name, is not limited for it where that can be purged: its own questions would
// go with the others.
func (f *offenders) suspect(a *usage, c Config) {
	if a.transient <= a.keepTransient || a.spared || a.answered() < ownAddress && !a.accountable(c) {
		return
	}
	f.suspects.heavy += a.transient
	if a.why != "" {
		f.suspects.limited += a.transient
	}
}

// comparableFor is how far two censuses may lie apart for their difference to be a rate. What came and went
// between them is missing, so a long time only makes sources look slower.
const comparableFor = 30 * time.Second

// opens works out how fast each source makes transient entries since the last census, and shares out what can be swept
// away. rest are the transient entries of sources that are not listed or left alone, but for connections that close.
func (f *offenders) opens(usages []usage, s situation, rest float64) divided {
	all := divided{keep: make([]float64, len(usages)), share: math.Inf(1)}
	for i := range all.keep {
		all.keep[i] = math.Inf(1)
	}
	swept, at, before, first := f.swept, f.at, f.rest, f.swept == nil
	switch {
	case first:
		swept, at, before = f.before, f.beforeAt, rest
	case !s.Census.Whole:
		return all // the difference of two samples is mostly chance
	}
	if s.Census.Whole {
		f.rest = rest
	}
	span := s.Census.Time.Sub(at).Seconds()
	if swept == nil || span <= 0 || span > comparableFor.Seconds() {
		return all
	}
	for i := range usages {
		if a := &usages[i]; !first || a.inside && a.scans() && a.known() {
			_, low, _ := s.Census.Estimate(a.Entries - a.Classes[Assured])
			a.opens = max(0, float64(low-swept[a.Source()])) / span
		}
	}
	// A few entries in a moment are no rate. Else each address of a spoofed flood would seem to open more than there is to
	// share, and ordinary users still more.
	few, passing := float64(s.cfg.Floor)/span, max(0, rest-before)/span
	opens := claims(usages, func(a *usage) (has, usual float64) {
		if a.opens <= few {
			passing += a.opens
			return 0, 0
		}
		return a.opens, a.usual.Transient / flowLife
	})
	all = divide(opens, passing, sweepPerPart*float64(s.Capacity), 1, s.ordinary.Known())
	for i := range usages {
		if usages[i].opens <= few {
			all.keep[i] = math.Inf(1)
		}
	}
	return all
}

// remember takes in, while nobody is judged, how many transient entries inside hosts have, so that one that scans is
// known for it at the first census: a limit on what it scans alone does no harm if an estimate was wrong. Of others a
// sample says too little.
func (f *offenders) remember(s situation) {
	if s.Census == nil || !s.forwards() {
		return
	}
	f.before, f.beforeAt = make(map[Source]int), s.Census.Time
	for _, h := range s.Census.Sources {
		if s.inside(h.Prefix) {
			f.before[h.Source()], _, _ = s.Census.Estimate(h.Entries - h.Classes[Assured])
		}
	}
}

// sweep remembers how many transient entries each source is left with.
func (f *offenders) sweep(usages []usage, now time.Time) {
	f.swept, f.at = make(map[Source]int, len(usages)), now
	for _, a := range usages {
		f.swept[a.Source()] = int(min(a.transient, a.keepTransient))
	}
}

// reason says why a source is to be limited; it is empty when it is not. A decision against a
// source is taken on the lower bound of what it holds.
func (a *usage) reason(census *Census, c Config) string {
	_, low, _ := census.Estimate(a.Classes[Assured])
	if float64(low) > tolerance*a.keepAssured {
		return fmt.Sprintf("holds %.0f entries, fair share %.0f%s", a.assured, a.keepAssured, a.usually())
	}
	if a.transient <= tolerance*a.keepTransient || a.opens <= tolerance*a.keepOpens || a.spared {
		return ""
	}
	// Who is never answered may be somebody else's address: its entries are swept away, but it is not
	// limited.
	if a.answered() < ownAddress && !a.accountable(c) {
		return ""
	}
	return fmt.Sprintf("opens %.0f flows a second, fair share %.0f", a.opens, a.keepOpens)
}

// provenHeavy reports whether a source is above its share by TCP alone, where whoever opens or closes connections has
// shown in a handshake that the address is its own. What asks by other protocols may have been sent by anybody.
func (a *usage) provenHeavy() bool {
	part := float64(a.Proven) / float64(max(a.Classes[Assured], 1))
	return part*a.assured > tolerance*a.keepAssured || a.closing > tolerance*a.keepTransient
}

// usually says what a source holds on an ordinary day, if it was here then.
func (a *usage) usually() string {
	if a.usual.Assured < 1 {
		return ""
	}
	return fmt.Sprintf(", usually %.0f", a.usual.Assured)
}

// accountable reports whether a source is responsible for what goes out in its name, answered or not: an inside host
// is, as a single address. A network belongs to many, and one of them may use all its addresses.
func (a *usage) accountable(c Config) bool {
	if c.Profile == Auto && a.inside {
		return a.Prefix.IsSingleIP() && a.forwarded()
	}
	return c.BanUnreplied && (!a.inside || a.Prefix.IsSingleIP())
}

// answered returns the part of a source's entries that saw an answer and finished a handshake.
func (a *usage) answered() float64 {
	return 1 - float64(a.Classes[Unreplied]+a.Classes[HalfOpen])/float64(max(a.Entries, 1))
}

// weightsKey is the key of the configuration that weights come from.
const weightsKey = "evict.weights"

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
