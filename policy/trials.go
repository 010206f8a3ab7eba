package policy

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"time"
)

// trials takes selectors from watched to trial to freed, and back when the host's own rules turn
// out to drop what is not tracked.
//
// The way back needs care: connections that lived untracked meet conntrack in the middle. So a TCP
// selector stays untracked while its connections are given entries, and once more after that, for
// those that were opened meanwhile.
type trials struct {
	selectors map[Selector]*trial
	failed    map[Selector]failure
	// TCP selectors that are tracked again, and since when: their connections may still lack entries.
	needEntries map[Selector]time.Time
	looks       looks
}

// update moves every candidate on: engage says which are to be untracked, the others are counted. It
// returns what is wanted now, in a stable order, and what changed. What is no candidate any more is
// forgotten once its connections are tracked again.
func (u *trials) update(
	o Observation, c Config, candidates []Selector, engage func(Selector) bool,
) ([]Untracked, []Event) {
	if u.selectors == nil {
		u.selectors = make(map[Selector]*trial)
		u.failed = make(map[Selector]failure)
		u.needEntries = make(map[Selector]time.Time)
	}
	maps.DeleteFunc(u.failed, func(_ Selector, f failure) bool { return !o.Time.Before(f.until) })
	maps.DeleteFunc(u.needEntries, func(_ Selector, tracked time.Time) bool { return !o.Adopted.Before(tracked) })
	var events []Event
	tell := func(text string) {
		if text != "" {
			events = append(events, Event{Kind: StepEvent, Step: Notrack, Reason: text})
		}
	}
	for _, s := range candidates {
		switch {
		case u.refusal(s, o) != "":
			u.drop(s, o)
		case engage(s):
			tell(u.advance(s, o, c))
		default:
			tell(u.watch(s, o))
		}
	}
	for s := range u.selectors {
		if slices.Contains(candidates, s) {
			continue
		}
		tell(u.watch(s, o))
		if u.selectors[s].stage == Watched {
			delete(u.selectors, s)
		}
	}
	slices.SortFunc(events, func(a, b Event) int { return cmp.Compare(a.Reason, b.Reason) })
	return u.wanted(), events
}

// wanted returns every selector that is counted or untracked, and how far it is, in a stable order.
func (u *trials) wanted() []Untracked {
	wanted := make([]Untracked, 0, len(u.selectors))
	for s, t := range u.selectors {
		wanted = append(wanted, Untracked{s, t.stage})
	}
	slices.SortFunc(wanted, func(a, b Untracked) int { return cmp.Compare(a.Selector.String(), b.Selector.String()) })
	return wanted
}

// adopt returns the TCP selectors whose connections are to be given entries.
func (u *trials) adopt() []Selector {
	var list []Selector
	for s, t := range u.selectors {
		if t.stage == Leaving {
			list = append(list, s)
		}
	}
	for s := range u.needEntries {
		if !slices.Contains(list, s) {
			list = append(list, s)
		}
	}
	slices.SortFunc(list, func(a, b Selector) int { return cmp.Compare(a.String(), b.String()) })
	return list
}

// moving reports whether some selector is between two stages. A trial that has seen too little by its end may
// go on for ever and is in no hurry.
func (u *trials) moving(now time.Time, c Config) bool {
	for _, t := range u.selectors {
		if t.stage == Trial && now.Sub(t.since) <= c.Trial {
			return true
		}
	}
	return u.adopting()
}

// adopting reports whether connections are being given entries.
func (u *trials) adopting() bool {
	for _, t := range u.selectors {
		if t.stage == Leaving {
			return true
		}
	}
	return len(u.needEntries) > 0
}

// untracked reports whether some TCP service or the management lane lives untracked: should ctguard be
// killed, their connections would meet what it left of its settings.
func (u *trials) untracked() bool {
	for s, t := range u.selectors {
		if s.OfTCP() && t.stage != Watched {
			return true
		}
	}
	return false
}

// refusal says why s must stay tracked; it is empty when nothing speaks against it.
func (u *trials) refusal(s Selector, o Observation) string {
	if reason := o.Refused[s]; reason != "" {
		return reason
	}
	if f, ok := u.failed[s]; ok && o.Time.Before(f.until) {
		return f.reason
	}
	if loose, known := o.Admin[tcpLoose]; known && loose == 0 && s.OfTCP() {
		return "tcp_loose is 0 here: should ctguard be killed, connections that live untracked would end"
	}
	if s.Whole() {
		return u.partRefusal(s, o)
	}
	return ""
}

// partRefusal says which part of a selector without a port must stay tracked, and why. Its own counters may
// not tell: one busy service hides that the host's own rules drop all the others.
func (u *trials) partRefusal(s Selector, o Observation) string {
	for _, part := range slices.Concat(o.Services, o.Lane) {
		if !s.PartlyCovers(part) {
			continue
		}
		if reason := u.refusal(part, o); reason != "" {
			return fmt.Sprintf("%s, which is part of it, must stay tracked: %s", part, reason)
		}
	}
	return ""
}

// early reports whether parts of s have yet to show in trials of their own that they can go untracked. One
// that nobody uses shows nothing, so it is waited for no longer than a trial lasts.
func (u *trials) early(s Selector, o Observation, c Config) bool {
	return s.Whole() && slices.ContainsFunc(o.Services, func(part Selector) bool {
		if !s.PartlyCovers(part) {
			return false
		}
		t := u.selectors[part]
		return t == nil || t.stage != Freed && (t.stage != Trial || o.Time.Sub(t.since) < c.Trial)
	})
}

// advance moves one selector on through its stages and says what changed, if anything did.
func (u *trials) advance(s Selector, o Observation, c Config) string {
	t := u.selectors[s]
	if t == nil {
		t = &trial{since: o.Time}
		u.selectors[s] = t
	}
	work, counted := o.Work.Selectors[s]
	if !counted {
		return ""
	}
	t.evidence.look(work)
	seen := t.evidence.passed(work)
	if seen.Besides > 0 && t.stage == Watched {
		fault := fmt.Sprintf("%d packets came to %s some other way: the answers could not be told apart",
			seen.Besides, s.Inside)
		u.failed[s] = failure{fault, o.Time.Add(c.RetryTrial)}
		u.drop(s, o)
		return fmt.Sprintf("%s stays tracked: %s", s, fault)
	}
	switch t.stage {
	case Watched, Leaving:
		if u.early(s, o, c) {
			return ""
		}
		if t.stage == Watched {
			t.before = seen
		}
		t.begin(Trial, o, s)
		return fmt.Sprintf("%s untracked on trial", s)
	case Trial:
		surplus := t.evidence.surplus(work)
		if fault := t.fault(seen); fault != "" || t.evidence.doubtful && surplus != "" {
			return u.takeBack(s, cmp.Or(fault, surplus), o, c)
		}
		if surplus != "" {
			t.evidence = from(work)
			t.evidence.doubtful = true
			return ""
		}
		if o.Time.Sub(t.since) >= c.Trial && seen.Requests >= fewRequests {
			seen = work.minus(t.evidence.first)
			t.stage, t.evidence, t.checked = Freed, from(work), o.Time
			return fmt.Sprintf("%s untracked: %d of %d requests delivered, %d of %d answers sent in its trial",
				s, seen.Delivered, seen.Requests, seen.Sent, seen.Replies)
		}
	case Freed:
		return u.recheck(s, t, seen, o, c)
	}
	return ""
}

// takeBack ends what a selector is on and says why.
func (u *trials) takeBack(s Selector, fault string, o Observation, c Config) string {
	u.failed[s] = failure{fault, o.Time.Add(c.RetryTrial)}
	u.drop(s, o)
	return fmt.Sprintf("%s taken back: %s", s, fault)
}

// recheck judges a freed selector once per trial's length: the host's rules may have been changed.
func (u *trials) recheck(s Selector, t *trial, seen SelectorWork, o Observation, c Config) string {
	if seen.Besides == 0 && (o.Time.Sub(t.checked) < c.Trial || seen.Requests < fewRequests) {
		return ""
	}
	work, earlier := o.Work.Selectors[s], t.evidence
	surplus := earlier.surplus(work)
	if fault := t.stopped(seen); fault != "" || earlier.doubtful && surplus != "" {
		return u.takeBack(s, cmp.Or(fault, surplus), o, c)
	}
	t.evidence = from(work)
	if t.evidence.doubtful = surplus != ""; !t.evidence.doubtful {
		t.checked = o.Time // else the next packets decide
	}
	if seen.Answers < fewRequests { // this host asks little: what it asked so far goes on counting
		t.evidence.first.Answers, t.evidence.first.Heard = earlier.first.Answers, earlier.first.Heard
	}
	return ""
}

// watch counts a selector that is to be tracked, or takes it back by way of Leaving.
func (u *trials) watch(s Selector, o Observation) string {
	t := u.selectors[s]
	switch {
	case t == nil:
		t = &trial{since: o.Time}
		u.selectors[s] = t
	case t.stage == Watched:
	case !s.OfTCP() || s.Forwarded(): // the connections to an inside host get their entries before the rules go
		t.begin(Watched, o, s)
		return fmt.Sprintf("%s tracked again", s)
	case t.stage != Leaving:
		t.begin(Leaving, o, s)
		return fmt.Sprintf("%s goes back: its connections are given entries", s)
	case !o.Adopted.Before(t.since) || o.Time.Sub(t.since) >= adoptWithin:
		t.begin(Watched, o, s)
		u.needEntries[s] = o.Time
		return fmt.Sprintf("%s tracked again", s)
	}
	if work, counted := o.Work.Selectors[s]; counted {
		t.evidence.look(work)
	}
	return ""
}

// adoptWithin is how long a selector waits for its connections to be given entries before it is tracked
// again all the same; that they need entries is not forgotten.
const adoptWithin = 10 * time.Second

// drop has a selector tracked again at once: its rules must go.
func (u *trials) drop(s Selector, o Observation) {
	if t := u.selectors[s]; t != nil && t.stage != Watched && s.OfTCP() && !s.Forwarded() {
		u.needEntries[s] = o.Time
	}
	delete(u.selectors, s)
}

// opened returns how many packets came in that would have opened a flow had they been tracked. What is
// part of a selector without a port is counted there too, so of the two sums the greater one counts.
func (u *trials) opened(o Observation) uint64 {
	var whole, parts uint64
	for s, t := range u.selectors {
		switch {
		case t.stage == Watched:
		case s.Whole():
			whole += o.Work.Selectors[s].New
		default:
			parts += o.Work.Selectors[s].New
		}
	}
	return max(whole, parts) + o.Work.FreedOpened
}
