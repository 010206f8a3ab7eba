package policy

import (
	"fmt"
	"time"
)

// Evidence that a trial needs before it says anything: fewer packets are chance.
const (
	enoughRequests = 20
	fewRequests    = 3 // enough to say that nothing at all gets through
)

// trial is one selector's way through the stages.
type trial struct {
	stage    Stage
	since    time.Time
	evidence evidence     // what was counted since the stage began, or since a freed selector was last judged
	checked  time.Time    // of a freed selector: when it was last judged
	before   SelectorWork // what the watched stage counted
}

// evidence is what was counted from one look on. A look reads one counter after the other, those of what comes before
// those of what arrives: what comes while it reads, and that may be much where the machine has no time for it, is only
// in the latter. So as not to miss what arrived, that is counted from the first look on and what came from the second.
// (All counters but those of services are read at once.)
type evidence struct {
	first, second SelectorWork
	looks         int
	doubtful      bool // what was counted before said that more was delivered than asked for
}

// from begins with a look.
func from(now SelectorWork) evidence { return evidence{first: now, second: now, looks: 1} }

// look notes what a look read, as the beginning of the evidence if it is one of the first two.
func (e *evidence) look(now SelectorWork) {
	if e.looks == 0 {
		e.first = now
	}
	if e.looks < 2 {
		e.second = now
		e.looks++
	}
}

// passed returns what was counted, as much as is certain of what came.
func (e *evidence) passed(now SelectorWork) SelectorWork {
	w := now.minus(e.first)
	w.Requests, w.Replies = since(now.Requests, e.second.Requests), since(now.Replies, e.second.Replies)
	return w
}

// failure is a selector that was taken back.
type failure struct {
	reason string
	until  time.Time
}

// begin starts a stage. Its counters start from what they are now, if they can be read; those of a
// trial from what they are at the next look, when its rules are in force: what was delivered before
// that was tracked.
func (t *trial) begin(stage Stage, o Observation, s Selector) {
	t.stage, t.since, t.evidence = stage, o.Time, evidence{}
	if work, counted := o.Work.Selectors[s]; counted && stage != Trial {
		t.evidence = from(work)
	}
}

// fault compares a trial with the time before it. A service that stops answering altogether is a fault
// whatever the cause.
func (t *trial) fault(now SelectorWork) string {
	if reason := t.stopped(now); reason != "" {
		return reason
	}
	answered := t.before.Requests >= enoughRequests && 5*t.before.Sent >= t.before.Requests
	if answered && now.Requests >= 5*enoughRequests && 20*now.Sent < now.Requests {
		return fmt.Sprintf("answers fell from %d for %d requests to %d for %d",
			t.before.Sent, t.before.Requests, now.Sent, now.Requests)
	}
	return ""
}

// surplus says that more was delivered than asked for. By itself it is but a doubt, as one counter is read after the
// other; a count begun after it decides, on little.
func (e *evidence) surplus(now SelectorWork) string {
	w, enough := now.minus(e.first), uint64(enoughRequests)
	if e.doubtful {
		enough = fewRequests
	}
	if w.Delivered < enough || float64(w.Delivered) <= copied*float64(w.Requests) {
		return ""
	}
	return fmt.Sprintf("%d deliveries for %d requests: it is reached some other way, too", w.Delivered, w.Requests)
}

// copied is how many deliveries for a request are more than chance and retransmission: then what is delivered is not
// what was asked for, but comes some other way, as from a redirected port.
const copied = 1.5

// stopped says what the host's own rules do not let through, judged in each direction by what they did
// before.
func (t *trial) stopped(now SelectorWork) string {
	if now.Besides > 0 {
		return fmt.Sprintf("%d packets came to the inside host some other way: its answers can't be told apart", now.Besides)
	}
	if fell(now.ErrorsPassed, now.Errors, t.before.ErrorsPassed, t.before.Errors) {
		return fmt.Sprintf("the host's own rules let %d of %d untracked ICMP errors through that ask for smaller packets",
			now.ErrorsPassed, now.Errors)
	}
	if fell(now.Delivered, now.Requests, t.before.Delivered, t.before.Requests) {
		return fmt.Sprintf("the host's own rules let %d of %d untracked requests through", now.Delivered, now.Requests)
	}
	if fell(now.Sent, now.Replies, t.before.Sent, t.before.Replies) {
		return fmt.Sprintf("the host's own rules let %d of %d untracked answers out", now.Sent, now.Replies)
	}
	if fell(now.Heard, now.Answers, t.before.Heard, t.before.Answers) {
		return fmt.Sprintf("the host's own rules let %d of %d untracked answers to what it asked through",
			now.Heard, now.Answers)
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
		before = min(before, float64(passedBefore)/float64(ofBefore))
	}
	return float64(passed)/float64(of) < before/2
}

// minus returns what w counted since before.
func (w SelectorWork) minus(before SelectorWork) SelectorWork {
	return SelectorWork{
		Requests:  since(w.Requests, before.Requests),
		New:       since(w.New, before.New),
		Delivered: since(w.Delivered, before.Delivered),
		Replies:   since(w.Replies, before.Replies),
		Sent:      since(w.Sent, before.Sent),
		Answers:   since(w.Answers, before.Answers),
		Heard:     since(w.Heard, before.Heard),

		Besides:      since(w.Besides, before.Besides),
		Errors:       since(w.Errors, before.Errors),
		ErrorsPassed: since(w.ErrorsPassed, before.ErrorsPassed),
	}
}
