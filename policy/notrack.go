package policy

import (
	"cmp"
	"fmt"
	"slices"
	"time"
)

// Evidence that a trial needs before it says anything: fewer packets are chance.
const (
	enoughRequests = 20
	fewRequests    = 3 // enough to say that nothing at all gets through
)

// untracker takes selectors from watched to trial to freed, and back when the host's own rules turn
// out to drop what is not tracked.
type untracker struct {
	selectors map[Selector]*selectorTrial
	failed    map[Selector]failure
	untracked bool // a TCP selector was untracked since level 0: some flows have no entry
}

// selectorTrial is one selector's way through the stages.
type selectorTrial struct {
	stage  Stage
	since  time.Time
	start  SelectorWork // the counters when the stage began
	known  bool         // start was read from the kernel
	before SelectorWork // what the watched stage counted
}

// failure is a selector that was taken back.
type failure struct {
	reason string
	until  time.Time
}

// update moves every candidate on: engage says which are to be untracked, the others are counted. It
// returns what is wanted now, in a stable order, and what changed. Without candidates it forgets all
// but what it refused.
func (u *untracker) update(o Observation, c Config, candidates []Selector, engage func(Selector) bool) ([]Notrack, []Event) {
	if len(candidates) == 0 {
		u.selectors, u.untracked = nil, false
		return nil, nil
	}
	if u.selectors == nil {
		u.selectors = make(map[Selector]*selectorTrial)
	}
	var events []Event
	wanted := make([]Notrack, 0, len(candidates))
	for _, s := range candidates {
		if u.refusal(s, o) != "" {
			delete(u.selectors, s)
			continue
		}
		if text := u.advance(s, o, c, engage(s)); text != "" {
			events = append(events, Event{Kind: StepEvent, Step: NotrackStep, Reason: text})
		}
		if t := u.selectors[s]; t != nil {
			wanted = append(wanted, Notrack{s, t.stage})
			u.untracked = u.untracked || s.Protocol == TCP && t.stage != Watched
		}
	}
	for s := range u.selectors {
		if !slices.Contains(candidates, s) {
			delete(u.selectors, s)
		}
	}
	slices.SortFunc(wanted, func(a, b Notrack) int { return cmp.Compare(a.Selector.String(), b.Selector.String()) })
	return wanted, events
}

// refusal says why s must stay tracked; it is empty when nothing speaks against it.
func (u *untracker) refusal(s Selector, o Observation) string {
	if reason := o.Refused[s]; reason != "" {
		return reason
	}
	if f, ok := u.failed[s]; ok {
		if o.Time.Before(f.until) {
			return f.reason
		}
		delete(u.failed, s)
	}
	if loose, known := o.Admin[tcpLoose]; known && loose == 0 && s.Protocol == TCP {
		return "tcp_loose is 0 here: connections that lived untracked could not be tracked again"
	}
	return ""
}

// advance moves one selector through its stages and says what changed, if anything did.
func (u *untracker) advance(s Selector, o Observation, c Config, engage bool) string {
	t := u.selectors[s]
	if t == nil {
		t = &selectorTrial{stage: Watched, since: o.Time}
		u.selectors[s] = t
	}
	work, counted := o.Work.Selectors[s]
	if !counted {
		return ""
	}
	if !t.known {
		t.start, t.known = work, true
	}
	seen := work.minus(t.start)
	switch {
	case t.stage == Watched && engage:
		t.begin(Trial, o.Time, work)
		t.before = seen
		return fmt.Sprintf("%s untracked on trial", s)
	case t.stage != Watched && !engage:
		t.begin(Watched, o.Time, work)
		return fmt.Sprintf("%s tracked again", s)
	case t.stage == Trial:
		if fault := t.fault(seen); fault != "" {
			delete(u.selectors, s)
			if u.failed == nil {
				u.failed = make(map[Selector]failure)
			}
			u.failed[s] = failure{fault, o.Time.Add(c.RetryTrial)}
			return fmt.Sprintf("%s taken back: %s", s, fault)
		}
		if o.Time.Sub(t.since) >= c.Trial && seen.Requests >= fewRequests {
			t.stage = Freed
			return fmt.Sprintf("%s untracked: %d of %d requests delivered, %d of %d answers sent in its trial",
				s, seen.Delivered, seen.Requests, seen.Sent, seen.Replies)
		}
	}
	return ""
}

// begin starts a stage with the counters it starts from.
func (t *selectorTrial) begin(stage Stage, now time.Time, work SelectorWork) {
	t.stage, t.since, t.start, t.known = stage, now, work, true
}

// fault compares a trial with the time before it. The host's own rules are judged by what they let
// through in each direction; a service that stops answering altogether is a fault whatever the
// cause.
func (t *selectorTrial) fault(now SelectorWork) string {
	if fell(now.Delivered, now.Requests, t.before.Delivered, t.before.Requests) {
		return fmt.Sprintf("the host's own rules let %d of %d untracked requests through", now.Delivered, now.Requests)
	}
	if fell(now.Sent, now.Replies, t.before.Sent, t.before.Replies) {
		return fmt.Sprintf("the host's own rules let %d of %d untracked answers out", now.Sent, now.Replies)
	}
	answered := t.before.Requests >= enoughRequests && 5*t.before.Sent >= t.before.Requests
	if answered && now.Requests >= 5*enoughRequests && 20*now.Sent < now.Requests {
		return fmt.Sprintf("answers fell from %d for %d requests to %d for %d", t.before.Sent, t.before.Requests, now.Sent, now.Requests)
	}
	return ""
}

// fell reports whether the part that passes is less than half of what it was; where there is not
// enough from before, everything is taken to have passed.
func fell(passed, of, passedBefore, ofBefore uint64) bool {
	if of >= fewRequests && passed == 0 {
		return ofBefore < enoughRequests || passedBefore > 0
	}
	if of < enoughRequests {
		return false
	}
	before := 1.0
	if ofBefore >= enoughRequests {
		before = float64(passedBefore) / float64(ofBefore)
	}
	return float64(passed)/float64(of) < before/2
}

// opened returns how many packets came in that would have opened a flow had they been tracked.
func (u *untracker) opened(o Observation) uint64 {
	var n uint64
	for s, t := range u.selectors {
		if t.stage != Watched {
			n += o.Work.Selectors[s].New
		}
	}
	return n
}

// minus returns what w counted since before.
func (w SelectorWork) minus(before SelectorWork) SelectorWork {
	return SelectorWork{
		Requests:  since(w.Requests, before.Requests),
		New:       since(w.New, before.New),
		Delivered: since(w.Delivered, before.Delivered),
		Replies:   since(w.Replies, before.Replies),
		Sent:      since(w.Sent, before.Sent),
	}
}
