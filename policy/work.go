package policy

import (
	"fmt"
	"math"
	"time"
)

// calm is what an ordinary day looks like, learnt at level 0: the measure for "gone quiet".
type calm struct {
	invalid  float64 // INVALID packets per second
	arrivals float64 // the peak of new work per second, fading over minutes
	paces    [2]pace
}

// calmGrowth is how many percent of the table growth may add to the pressure of an ordinary day.
const calmGrowth = 10

// growing reports whether the table grows faster than on an ordinary day.
func (r reading) growing() bool {
	return r.ahead >= calmGrowth || r.drops > 0 && r.pressure >= r.fill+calmGrowth
}

// How long ordinary traffic is remembered: a peak of arrivals until it has faded to a third, and the
// mean of INVALID packets.
const (
	calmFade = 10 * time.Minute
	calmMean = time.Minute
)

// observe takes one observation in; only while ordinary does it learn.
func (c *calm) observe(o Observation, ordinary bool) {
	before := c.paces[1].at
	invalid := c.paces[0].update(o.Time, o.Kernel.Invalid)
	arrivals := c.paces[1].update(o.Time, o.Arrivals.TCPOpens+o.Arrivals.UDPDatagrams+o.Arrivals.Echoes)
	if !ordinary || before.IsZero() {
		return
	}
	dt := max(0, o.Time.Sub(before).Seconds())
	c.invalid += (1 - math.Exp(-dt/calmMean.Seconds())) * (invalid - c.invalid)
	c.arrivals = max(arrivals, c.arrivals*math.Exp(-dt/calmFade.Seconds()))
}

// quietRate is the work per second, in packets or entries, that every step may still do and count as
// quiet: a few stray clients.
const quietRate = 10

// done returns how much a step has done so far, in packets and entries.
func (m *Machine) done(name StepName, o Observation) uint64 {
	switch name {
	case Grow:
		return uint64(max(0, o.Capacity-o.Admin[tableMax]))
	case DropInvalid:
		return o.Work.InvalidDropped
	case ClosedPorts:
		return o.Work.ClosedDropped
	case Synproxy:
		return o.Work.Proxied.SYNs
	case Admit:
		return o.Work.BudgetDropped
	case NotrackStep:
		return m.untracker.opened(o)
	case Tighten:
		return o.Work.Retimed
	case Evict:
		return o.Work.LimitedDropped + o.Work.BlockedDropped + o.Work.Evicted
	}
	return 0
}

// quiet takes the steps' work in and returns whether a step's own has gone quiet: were it taken back now, the table would
// stay as calm as it is.
func (m *Machine) quiet(o Observation) func(StepName) bool {
	for name, p := range m.work {
		p.update(o.Time, m.done(name, o))
	}
	m.handshakes.update(o.Time, unfinished(o.Work.Proxied))
	return func(name StepName) bool {
		rate := m.work[name].Rate
		step, _ := m.cfg.Step(name)
		switch name {
		case Grow:
			return m.fitsBefore(o)
		case ClosedPorts:
			return roomBelow(step, o, rate*unrepliedLife)
		case Synproxy:
			return m.proxyQuiet(o)
		case Admit:
			return m.admitter.quiet(o, step, rate)
		case DropInvalid:
			return rate <= quietRate+2*m.calm.invalid
		case NotrackStep:
			return m.retrackable(o, rate)
		case Evict:
			return rate <= quietRate
		case Tighten:
		}
		return true
	}
}

// retrackable reports whether the table has room for what notrack keeps out of it: the connections
// that live untracked, which become entries again, and new ones, unless they are no more than on an
// ordinary day.
func (m *Machine) retrackable(o Observation, rate float64) bool {
	step, _ := m.cfg.Step(NotrackStep)
	more := float64(o.Sockets)
	if rate > 5*quietRate+2*m.calm.arrivals {
		more += rate * newFlowLife
	}
	return roomBelow(step, o, more)
}

// roomBelow reports whether the table has room for more entries below a step's leave mark.
func roomBelow(step Step, o Observation, more float64) bool {
	return 100*(float64(o.Count)+more) < step.Leave*float64(o.Capacity)
}

// unrepliedLife is how many seconds a packet that nobody answers stays in the table at the kernel's
// defaults, as nf_conntrack_udp_timeout.
const unrepliedLife = 30

// newFlowLife is how many seconds a new flow stays in the table at the kernel's defaults: the
// longer of nf_conntrack_udp_timeout_stream and nf_conntrack_tcp_timeout_time_wait, both 120.
const newFlowLife = 120

// outcomeAfter is when a step says what it brought.
const outcomeAfter = 5 * time.Second

// outcome is what things were like when a step was engaged: what came of it is the difference.
type outcome struct {
	at      time.Time
	fill    float64 // percent
	drops   uint64  // flows the kernel had refused
	done    uint64  // what the step had done, as [Machine.done] counts it
	evicted uint64  // entries ctguard had deleted
}

// begin notes what things are like as a step is engaged.
func (m *Machine) begin(name StepName, o Observation, r reading) *outcome {
	return &outcome{o.Time, r.fill, o.Kernel.Drop + o.Kernel.InsertFailed, m.done(name, o), o.Work.Evicted}
}

// report says what each step brought, a little after it was engaged.
func (m *Machine) report(o Observation, r reading) []Event {
	var events []Event
	for i, rung := range m.ladder.rungs[:m.ladder.level] {
		was := m.started[rung.Name]
		if was == nil || o.Time.Sub(was.at) < outcomeAfter {
			continue
		}
		delete(m.started, rung.Name)
		if m.skipped(rung.Name, o) != "" {
			continue
		}
		text, something := m.brought(rung.Name, was, o)
		m.futile = m.futile || !something && i == m.ladder.level-1
		drops := since(o.Kernel.Drop+o.Kernel.InsertFailed, was.drops)
		reason := fmt.Sprintf("%s in %s: fill %.0f %% to %.0f %%, %d flows refused by the kernel meanwhile",
			text, o.Time.Sub(was.at).Round(time.Second), was.fill, r.fill, drops)
		events = append(events, Event{Kind: StepEvent, Step: rung.Name, Reason: reason})
	}
	return events
}

// brought puts a step's outcome into words, and says whether there is one.
func (m *Machine) brought(name StepName, was *outcome, o Observation) (string, bool) {
	done := since(m.done(name, o), was.done)
	if done == 0 {
		return "brought nothing", false
	}
	switch name {
	case Grow:
		return fmt.Sprintf("made room for %d more entries", done), true
	case ClosedPorts:
		return fmt.Sprintf("dropped %d packets that no socket waited for", done), true
	case Synproxy:
		return fmt.Sprintf("answered %d handshakes with cookies, %d came back", done, o.Work.Proxied.Completed()), true
	case Admit:
		return fmt.Sprintf("dropped %d packets above the budgets of %d classes", done, len(m.decision.Posture.Budgets)), true
	case DropInvalid:
		return fmt.Sprintf("dropped %d invalid packets", done), true
	case NotrackStep:
		return fmt.Sprintf("kept %d new flows out of the table", done), true
	case Tighten:
		return fmt.Sprintf("shortened %d entries", done), true
	case Evict:
	}
	evicted := since(o.Work.Evicted, was.evicted)
	return fmt.Sprintf("evicted %d entries, dropped %d packets of %d sources", evicted, since(done, evicted), len(m.decision.Posture.Limits)), true
}
