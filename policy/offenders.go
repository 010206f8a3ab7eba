package policy

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"
)

// offenders finds the heavy sources of a census and remembers whom it limits.
//
// An entry is assured while it carries a conversation that lasts, and transient otherwise: a
// handshake, one question and its answer, a connection that closes. A client that opens and closes
// many connections has many transient entries and no assured ones; they can be evicted at no harm. So a
// source is limited for its assured entries, and for transient ones only where they come faster than
// they can be swept away.
type offenders struct {
	known    map[Source]*offence
	order    []Source       // those, sorted: at every tick all are asked for; nil where that is to be done anew
	swept    map[Source]int // transient entries that each source was left with by the last census
	before   map[Source]int // transient entries of inside hosts before this attack's first census
	beforeAt time.Time      // when that was
	rest     float64        // transient entries of the sources that census did not list
	at       time.Time      // of that census
	last     []usage        // what each source used then
	judged   int            // censuses of this attack
	found    bool           // somebody was above a fair share, and the target is not reached yet
	vain     int            // censuses in a row that found nobody
	suspects suspects       // whose the transient entries were then
	rate     int            // new flows per second that a limited source may open
	more     bool           // more sources were due than may be limited
	zoned    bool           // zones are in use: a limit is for one of them
	zones    bool           // sources were due in more zones than may have limits
	blind    bool           // of a source that is limited nobody has looked yet who answers it
	unlisted bool           // the kernel counts many more entries than it lists
	harm     comebacks      // conversations that were evicted and go on

	began     time.Time // when this attack's first census was judged
	resort    lastResort
	excessive int    // entries that were to go by the last census
	evicted   uint64 // entries that ctguard had deleted by then
}

// offence is what is remembered of one source.
type offence struct {
	limit   Limit
	strikes int  // how often it was limited, each time for twice as long
	scans   bool // next to nothing of what it opened was answered
	began   time.Time
}

// judge takes a census in: it limits heavy sources, renews those that still offend and returns how
// many entries each source above its share may keep.
func (f *offenders) judge(s situation) ([]Cap, []Event) {
	c := *s.cfg
	f.judged++
	newly, events := f.harm.heed(s)
	usages, share := f.shareOut(s)
	f.reprieve(newly, usages, s.Time)
	f.rate = limitRate(share, c)
	var due []usage
	for _, a := range usages {
		if a.why != "" {
			due = append(due, a)
		}
	}
	if len(due) > c.MaxLimited {
		due = fold(due, s)
	}
	var limits []Event
	limited := make(map[Source]bool, len(due))
	zones := f.limitedZones(s.Time)
	left := 0
	for _, a := range due[:min(len(due), c.MaxLimited)] {
		if !zones[a.Zone] && len(zones) >= MostZones {
			left++
			continue
		}
		zones[a.Zone], limited[a.Source()] = true, true
		limits = f.limit(limits, s.Time, a, c)
	}
	events = append(append(events, summed(limits)...), f.tooManyZones(left)...)
	if more := len(due) - c.MaxLimited; more > 0 && !f.more {
		events = append(events, Event{Kind: DegradedEvent, Step: Evict,
			Reason: fmt.Sprintf("%d more sources should be limited than evict.max_limited (%d) allows: the largest are",
				more, c.MaxLimited)})
	}
	f.more = len(due) > c.MaxLimited
	f.meet(usages, s.Time)
	caps := f.excess(usages, limited, s)
	if f.vain++; f.found {
		f.vain = 0
	}
	return caps, append(events, f.disagreement(s)...)
}

// reprieve ends the limits of sources that keep what came back from now on, where that is all they have too much of.
func (f *offenders) reprieve(sources []Source, usages []usage, now time.Time) {
	for _, a := range usages {
		of := f.known[a.Source()]
		if of != nil && a.why == "" && now.Before(of.limit.Until) && slices.Contains(sources, a.Source()) {
			of.limit.Until = now
		}
	}
}

// excess returns how many entries each source above its share may keep. Block, then evict: assured entries go only
// when they can't come back at once, and those that lead to inside hosts only where what is said in their name then is
// dropped as INVALID. While nothing is known of an ordinary day they stay, because nobody knows whose
// conversations they are.
func (f *offenders) excess(usages []usage, limited map[Source]bool, s situation) []Cap {
	c := *s.cfg
	var caps []Cap
	recent, above, goes := f.recent(s), false, 0.0
	for _, a := range usages {
		if a.assured <= a.keepAssured && a.transient <= a.keepTransient {
			continue
		}
		above = true
		keep := max(1, int(min(a.assured, a.keepAssured)+min(a.transient, a.keepTransient)))
		is := limited[a.Source()] || limited[c.folded(a.Source())]
		f.excessive += max(0, int(a.assured+a.transient)-keep)
		spare := c.SpareAssured || !is || !s.ordinary.Known() || c.Profile == Auto && a.inside
		if spare {
			goes += min(a.transient, a.assured+a.transient-float64(keep))
		} else {
			goes += a.assured + a.transient - float64(keep)
		}
		caps = append(caps, Cap{Prefix: a.Prefix, Zone: a.Zone, Keep: keep, SpareAssured: spare,
			SpareForward: c.Profile == Auto, TakeInward: s.before.DropInvalid, SpareRecent: !recent.takes(a),
			ClosingFirst: !is && a.answered() >= ownAddress})
	}
	f.found = above || f.found && s.fill > c.Target
	if goes < worthEvicting*float64(s.Capacity) {
		return nil // a pass over the table for next to nothing keeps the next scan waiting
	}
	return caps
}

// worthEvicting is the part of the capacity that an eviction must be able to free.
const worthEvicting = 0.005

// lastResort is who may lose what spoke in the last minute.
type lastResort uint8

// Conversations that go on are taken last, from newcomers before those who usually are here.
const (
	nobody lastResort = iota
	newcomers
	everybody
)

func (r lastResort) takes(a usage) bool {
	return r == everybody || r == newcomers && a.usual.Assured < 1
}

// young is how long after the first census nothing of newcomers can have been idle for a minute.
const young = time.Minute

// recent decides whose recent entries may go: nobody's as long as taking idle ones brings what is needed.
func (f *offenders) recent(s situation) lastResort {
	if f.began.IsZero() {
		f.began = s.Time
	}
	taken := since(s.Work.Evicted, f.evicted)
	switch short := f.excessive > 0 && taken < uint64(f.excessive)/2; {
	case !short && s.fill <= s.cfg.Target:
		f.resort = nobody
	case short && s.shared.crowded && f.resort < everybody:
		f.resort++
	}
	f.excessive, f.evicted = 0, s.Work.Evicted
	if s.Time.Sub(f.began) < young {
		return max(f.resort, newcomers)
	}
	return f.resort
}

// unlisted is the part of the counted entries that a whole census must miss to say so.
const unlisted = 0.25

// disagreement tells, once, of a kernel that counts many more entries than it lists. They are nobody's, and no limit
// helps.
func (f *offenders) disagreement(s situation) []Event {
	was := f.unlisted
	missing := s.Count - s.Census.Seen
	f.unlisted = s.Census.Whole && float64(missing) > unlisted*float64(s.Count)
	if was || !f.unlisted {
		return nil
	}
	return []Event{{Kind: DegradedEvent, Step: Evict, Reason: fmt.Sprintf("the kernel counts %d entries and lists %d: "+
		"the others are dying, unconfirmed or expired (a stuck listener to conntrack events keeps them); nobody is blamed "+
		"for those", s.Count, s.Census.Seen)}}
}

// foldFrom is how many heavy sources a network must have to be limited as one.
const foldFrom = 4

// fold puts heavy sources of one network together, when there are more than can be limited one by
// one, and returns them with the largest first. A network of somebody who is usually here is not limited as a whole.
func fold(due []usage, s situation) []usage {
	c := *s.cfg
	usual := make(map[Source]bool)
	for source := range s.ordinary.Sources {
		usual[c.folded(source)] = true
	}
	networks := make(map[Source][]usage)
	for _, a := range due {
		network := c.folded(a.Source())
		networks[network] = append(networks[network], a)
	}
	var list []usage
	for network, members := range networks {
		if len(members) < foldFrom || usual[network] {
			list = append(list, members...)
			continue
		}
		sum := usage{Holding: Holding{Prefix: network.Prefix, Zone: network.Zone}, butTCP: true}
		for _, a := range members {
			sum.Entries += a.Entries
			sum.butTCP = sum.butTCP && a.butTCP
			sum.assured, sum.transient = sum.assured+a.assured, sum.transient+a.transient
			for class := range a.Classes {
				sum.Classes[class] += a.Classes[class]
			}
		}
		sum.why = fmt.Sprintf("%d heavy sources in it, with %.0f entries", len(members), sum.assured+sum.transient)
		list = append(list, sum)
	}
	slices.SortFunc(list, func(a, b usage) int {
		return cmp.Or(cmp.Compare(b.assured+b.transient, a.assured+a.transient), a.Source().Compare(b.Source()))
	})
	return list
}

// folded returns the network that a source is limited with when there are too many.
func (c Config) folded(s Source) Source {
	bits := c.FoldV6
	if s.Prefix.Addr().Is4() {
		bits = c.FoldV4
	}
	return s.within(min(bits, s.Prefix.Bits()))
}

// mostEvents is how many limits of one tick are told one by one: a screenful.
const mostEvents = 20

// summed keeps the first of a tick's events on sources and puts the rest into one event, so that an attack from
// thousands of sources doesn't flood the log too.
func summed(events []Event) []Event {
	if len(events) <= mostEvents {
		return events
	}
	rest := Event{Kind: events[0].Kind, Step: Evict}
	for _, e := range events[mostEvents:] {
		rest.Entries += e.Entries
	}
	rest.Reason = fmt.Sprintf("and %d more sources, with %d entries", len(events)-mostEvents, rest.Entries)
	return append(events[:mostEvents:mostEvents], rest)
}

// limit limits one source, or renews its limit.
func (f *offenders) limit(events []Event, now time.Time, a usage, c Config) []Event {
	if f.known == nil {
		f.known = make(map[Source]*offence)
	}
	of := f.known[a.Source()]
	if of == nil {
		of = &offence{limit: Limit{Prefix: a.Prefix, Zone: a.Zone}}
		f.known[a.Source()], f.order = of, nil
	}
	active := now.Before(of.limit.Until)
	if !active {
		of.strikes++
		of.began = now
	}
	span := of.span(c)
	of.limit.ButTCP = a.butTCP && (of.limit.ButTCP || !active) // what was for all stays so until it ends
	of.widen(a, active)
	if active && of.limit.Until.Sub(now) > span/2 {
		return events
	}
	of.limit.Until = now.Add(span)
	if active {
		return events
	}
	of.limit.Kind, of.limit.Reason = LimitNew, a.why
	if a.answered() < silent && !a.inside && !f.zoned { // a neighbour may have sent it: what goes on, goes on
		of.limit.Kind, of.limit.ButTCP = Block, false
	}
	return append(events, Event{Kind: LimitEvent, Step: Evict, Prefix: a.Prefix, Zone: a.Zone,
		Entries: int(a.assured + a.transient), Reason: fmt.Sprintf("%s for %s: %s", of.limit, span, of.limit.Reason)})
}

// MostPeers is how many of those who answered an inside host go free.
const MostPeers = 256

// widen takes in what an inside host opens too much of, beside what a limit in force has already: a scan goes on from
// port to port.
func (of *offence) widen(a usage, active bool) {
	if !active {
		of.limit.Flows, of.scans = nil, a.inside && a.Prefix.IsSingleIP() && a.scans()
	}
	if !a.inside || !a.Prefix.IsSingleIP() {
		return
	}
	if flows := a.narrow(); !active {
		of.limit.Flows = flows
	} else if len(of.limit.Flows) > 0 {
		if of.limit.Flows = united(of.limit.Flows, flows); flows == nil || len(of.limit.Flows) > mostFlows {
			of.limit.Flows = nil
		}
	}
}

// blindFor is how long after a source was limited it is worth a census of its own to find out who answers it.
const blindFor = 3 * time.Second

// meet lets those go free who answered an inside host that scans. Their entries are gone soon, so they are kept for as
// long as the source is remembered, and looked for at once.
func (f *offenders) meet(usages []usage, now time.Time) {
	f.blind = false
	for _, a := range usages {
		of := f.known[a.Source()]
		if of == nil || !of.scans || !now.Before(of.limit.Until) {
			continue
		}
		if a.Look == nil || !a.Look.Closer {
			f.blind = f.blind || now.Sub(of.began) < blindFor
			continue
		}
		peers := slices.Clone(of.limit.Peers)
		for _, addr := range a.Look.Peers {
			if len(peers) < MostPeers && !slices.Contains(peers, addr) {
				peers = append(peers, addr)
			}
		}
		slices.SortFunc(peers, netip.Addr.Compare)
		of.limit.Peers = peers
	}
}

// united returns the classes of both lists, sorted.
func united(a, b []FlowClass) []FlowClass {
	all := slices.Concat(a, b)
	slices.SortFunc(all, FlowClass.compare)
	return slices.Compact(all)
}

// span returns how long a source's limit lasts.
func (of *offence) span(c Config) time.Duration {
	return min(c.MaxLimitFor, c.LimitFor<<min(of.strikes-1, 20))
}

// limits returns the limits in force, in the order of their prefixes, and forgets sources whose
// last limit ended longer ago than it lasted.
func (f *offenders) limits(now time.Time, c Config) []Limit {
	if len(f.known) == 0 {
		return nil
	}
	if f.order == nil {
		f.order = slices.SortedFunc(maps.Keys(f.known), Source.Compare)
	}
	limits := slices.Grow([]Limit(nil), len(f.order))
	f.order = slices.DeleteFunc(f.order, func(source Source) bool {
		of := f.known[source]
		if now.Before(of.limit.Until) {
			limits = append(limits, of.limit.inZone(f.zoned))
			return false
		}
		over := now.Sub(of.limit.Until) > 2*of.span(c)
		if over {
			delete(f.known, source)
		}
		return over
	})
	return limits
}

// MostZones is how many conntrack zones sources may be limited in at a time.
const MostZones = 64

// limitedZones returns the zones that have limits in force.
func (f *offenders) limitedZones(now time.Time) map[uint16]bool {
	zones := make(map[uint16]bool)
	for source, of := range f.known {
		if now.Before(of.limit.Until) {
			zones[source.Zone] = true
		}
	}
	return zones
}

// tooManyZones tells, once, of sources that are not limited because too many zones have limits already.
func (f *offenders) tooManyZones(left int) []Event {
	was := f.zones
	f.zones = left > 0
	if was || !f.zones {
		return nil
	}
	return []Event{{Kind: DegradedEvent, Step: Evict, Reason: fmt.Sprintf("%d sources should be limited in more than %d "+
		"zones: there they only lose entries that carry no conversation", left, MostZones)}}
}

// inZone is a limit where zones are in use. What is blocked is dropped before its zone is known, so there nobody is.
func (l Limit) inZone(zoned bool) Limit {
	if l.Zoned = zoned; zoned {
		l.Kind = LimitNew
	}
	return l
}

// release ends every limit; strikes are remembered.
func (f *offenders) release(now time.Time) {
	for _, of := range f.known {
		if now.Before(of.limit.Until) {
			of.limit.Until = now
		}
	}
	f.swept, f.last, f.more, f.suspects = nil, nil, false, suspects{}
	f.judged, f.vain, f.began, f.resort, f.excessive = 0, 0, time.Time{}, nobody, 0
}

// forget drops all memory of the sources inside prefix.
func (f *offenders) forget(prefix netip.Prefix) {
	maps.DeleteFunc(f.known, func(s Source, _ *offence) bool { return s.Prefix.Overlaps(prefix) })
	f.order = nil
}

// flowLife is how long a new flow that nobody closes stays in the table, in seconds: the default
// of nf_conntrack_udp_timeout, the shortest of those that a flood makes use of.
const flowLife = udpTimeout

// limitRate returns how many new flows a second keep a source at its fair share, as a power of two
// so that a share that drifts doesn't change the rule each time.
func limitRate(share float64, c Config) int {
	rate := 1
	for rate*2 <= c.LimitRate && float64(rate*2) <= share/flowLife {
		rate *= 2
	}
	return rate
}
