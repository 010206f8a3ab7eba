package policy

import (
	"fmt"
	"math"
	"net/netip"
	"slices"
)

// Evict is the step that limits heavy sources and takes their excess out of the table.
const Evict StepName = "evict"

// evict limits the sources above a fair share; where a flood comes from everywhere it purges its class.
type evict struct {
	plain
	offenders offenders
	purger    purger
}

// observe says whether the table is crowded: fuller than half-way from the fair share's target to the leave mark.
func (e *evict) observe(s situation) {
	s.shared.crowded = s.listed() && s.fill > (s.cfg.Target+s.marks.Leave)/2
}

// burstSeconds is how many seconds' worth of new flows a limited source may open at once: a browser
// opens several connections for one page.
const burstSeconds = 5

func (e *evict) want(s situation, p *Posture) []Event {
	f := &e.offenders
	f.zoned = s.shared.zoned
	var events []Event
	if !s.engaged {
		f.release(s.Time)
		f.remember(s)
	} else if s.Census != nil {
		p.Caps, events = f.judge(s)
	}
	s.shared.suspects = f.suspects
	events = append(events, e.purger.want(s, p)...)
	s.shared.purged = e.purger.classes
	if e.purger.purges() && s.Census != nil && !s.Census.Whole {
		// To a sample of such a flood each of its addresses seems to hold a dozen entries: a pass would find next to none.
		p.Caps = slices.DeleteFunc(p.Caps, func(c Cap) bool { return c.SpareAssured })
	}
	p.Limits = f.limits(s.Time, *s.cfg)
	p.LimitRate = max(1, f.rate)
	p.LimitBurst = burstSeconds * p.LimitRate
	if s.engaged {
		e.ask(s)
	}
	return events
}

// ask asks for scans. Who is heavy is worth a whole scan while the table is crowded, and all the way down to
// the target while somebody has just been found above a share. Below that, and while a flood is purged that
// comes from everywhere, only the shape of the table is of interest. There is no time to lose while pressure is at
// the enter mark, unless the last scans found nobody above a fair share. One is not enough to say so: it may see too
// little of a flood that has just begun, or whose entries take the place of others little by little.
//
// An inside host that scans fills a table in a second: where there are any, the first two scans, which tell how fast
// each source grows, don't wait for the table to be crowded.
func (e *evict) ask(s situation) {
	f := &e.offenders
	first := f.judged < 2 && s.forwards() && s.growing()
	crowded := s.shared.crowded || first
	if !e.purger.purges() && (crowded || f.found && s.fill > s.cfg.Target) || f.blind {
		s.shared.asks.wantScan(WholeScan)
	}
	s.shared.asks.hurry = crowded && s.pressure >= s.marks.Enter && f.vain < vainScans || f.blind
	s.shared.asks.compare = f.judged == 1
}

// vainScans is how many scans in a row must find nobody before looking for somebody may wait.
const vainScans = 4

func (*evict) done(o Observation) uint64 {
	return o.Work.LimitedDropped + o.Work.BlockedDropped + since(o.Work.Evicted, o.Work.Retired)
}

func (*evict) quiet(_ situation, rate float64) bool { return rate <= quietRate }

func (*evict) brought(s situation, done uint64, was outcome) string {
	evicted := since(since(s.Work.Evicted, was.evicted), since(s.Work.Retired, was.retired))
	return fmt.Sprintf("evicted %d entries, dropped %d packets of %d sources",
		evicted, since(done, evicted), len(s.before.Limits))
}

func (e *evict) status(s situation) string {
	text := fmt.Sprintf("%d sources limited", len(s.before.Limits))
	if s.engaged && !s.ordinary.Known() {
		text += "; nothing is known of an ordinary day here, so nobody loses a conversation"
	}
	return text + e.offenders.harm.status(s.Time)
}

func (e *evict) forget(prefix netip.Prefix) { e.offenders.forget(prefix) }

// explain says how often the sources inside prefix were limited, and how they stood at the last census. While evict is
// not engaged it says what would be theirs if it were, so that nobody has to wait for an attack to know.
func (e *evict) explain(prefix netip.Prefix, s situation, say func(string, ...any)) {
	for source, of := range e.offenders.known {
		if source.Prefix.Overlaps(prefix) {
			say("%s has been limited %d times so far; the next time it will be for %s", source, of.strikes, of.span(*s.cfg))
		}
	}
	for p, k := range e.offenders.harm.sources {
		if p.Prefix.Overlaps(prefix) && s.Time.Before(k.until) {
			say("%s: %s; it keeps what came back until %s", p, k.text(), k.until.Format("15:04:05"))
		}
	}
	list, verb := e.offenders.last, "holds"
	if !s.engaged {
		if say("%s", s.whyNobody()); s.Census == nil || s.Capacity == 0 {
			return
		}
		rehearsal := offenders{harm: e.offenders.harm}
		list, _ = rehearsal.shareOut(s)
		verb = "would be judged now, if it were: it holds"
	}
	if list == nil {
		say("the table is not being divided now: nobody is near a fair share")
		return
	}
	var found netip.Prefix
	for _, a := range list {
		if !a.Prefix.Overlaps(prefix) || found.IsValid() && a.Prefix != found {
			continue
		}
		found = a.Prefix // it may be in several zones
		say("%s %s about %.0f entries (%s) and %.0f that only pass (%s); weight %g", a.Source(), verb,
			a.assured, shareText(a.keepAssured), a.transient, shareText(a.keepTransient), a.weight)
		if a.opens > 0 {
			say("it opened about %.0f flows a second (%s); %.0f %% of its entries were answered",
				a.opens, shareText(a.keepOpens), 100*a.answered())
		}
	}
	if found.IsValid() {
		return
	}
	say("it was not among the %d largest sources of the last scan: far below a fair share", len(list))
}

// whyNobody says why no source is limited or evicted while evict is not engaged.
func (s situation) whyNobody() string {
	if !s.listed() {
		return "the configuration has evict off: ctguard limits and evicts nobody"
	}
	return fmt.Sprintf("evict is not engaged, so ctguard limits and evicts nobody by itself: "+
		"pressure is %.0f %%, and it comes in at %g %%", s.pressure, s.marks.Enter)
}

// shareText says how much of something a source may keep.
func shareText(keep float64) string {
	if math.IsInf(keep, 1) {
		return "everybody fits: all of it"
	}
	return fmt.Sprintf("fair share %.0f", keep)
}
