package agent

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"ctguard/agent/state"
	"ctguard/agent/sysctl"
	"ctguard/nft"
	"ctguard/policy"
)

// calmBelow is the pressure in percent below which nothing is about to go untracked, so that what the host's rules
// say may be a little older.
const calmBelow = 30

// tick is one turn of the loop: observe, decide, apply. It returns false where there was nothing to decide on.
func (l *loop) tick() bool {
	started := time.Now()
	o, err := l.observe(started)
	if l.trouble("observe", err); err != nil {
		l.decision.Next = l.config.Policy.Calm
		return false
	}
	l.lookAround(started, o.Count)
	words := state.WordsOf(l.machine)
	l.decision = l.machine.Tick(o)
	l.calm(l.isCalm())
	if l.recorder != nil {
		l.trouble("record", l.recorder.Record(o, words, l.decision.Posture.Level))
	}
	for _, e := range l.decision.Events {
		l.emit(e)
	}
	l.apply(started)
	l.keepCaps(o)
	if o.Census != nil && l.machine.OrdinaryDay().Updated.Equal(o.Census.Time) {
		l.learnt++ // a moment that was not ordinary teaches nothing, and the next try comes as soon as this one did
	}
	l.trouble("ordinary day", l.state.KeepDay(l.machine.OrdinaryDay(), started))
	l.publish(o, time.Since(started))
	return true
}

// isCalm reports whether nothing is untracked or dropped, nor about to be.
func (l *loop) isCalm() bool {
	return l.decision.Posture.Level == 0 && l.decision.Pressure < calmBelow
}

// sensors are what the loop reads at each tick.
type sensors struct {
	table table
	stack stack
}

// table is what the loop reads of the conntrack table; *conntrack.Table is one.
type table interface {
	Count() (int, error)
	Max() (int, error)
	Counters() (policy.KernelCounters, error)
}

// stack is what the loop reads of the protocol stack; *survey.Host is one.
type stack interface {
	Arrivals() (policy.Arrivals, error)
	Sockets() (int, error)
}

// observe reads everything that one tick needs.
func (l *loop) observe(now time.Time) (policy.Observation, error) {
	o := policy.Observation{Time: now, Adopted: l.adopted, Foreign: l.actuator.foreign(),
		Kernel: l.last.Kernel, Arrivals: l.last.Arrivals, Sockets: l.last.Sockets, Work: l.last.Work}
	blind, err := l.sensors.read(&o, l.config.Capacity, l.actuator.work)
	if err != nil {
		return o, err
	}
	l.trouble("counters", blind)
	if o.Capacity != l.last.Capacity {
		l.readSettings() // what the table may grow to goes by what it is now
	}
	o.Host = l.facts.Host
	o.Work.Retimed, o.Work.Retired = l.retimed, l.retired
	if l.fresh {
		o.Census, l.fresh = l.census, false
	}
	l.last = o
	return o, nil
}

// read reads into an observation. Without the count and the capacity, bound by what the configuration gives
// this namespace, there is nothing to decide on; what else can't be read stays as it was and is in blind.
func (s sensors) read(o *policy.Observation, bound int, work func() (policy.Work, error)) (blind, err error) {
	if o.Count, err = s.table.Count(); err != nil {
		return nil, err
	}
	if o.Capacity, err = s.capacity(bound); err != nil {
		return nil, err
	}
	return errors.Join(
		update(&o.Kernel, s.table.Counters),
		update(&o.Arrivals, s.stack.Arrivals),
		update(&o.Sockets, s.stack.Sockets),
		update(&o.Work, work),
	), nil
}

// update replaces a value by a newer one, if that can be read.
func update[T any](value *T, read func() (T, error)) error {
	newer, err := read()
	if err == nil {
		*value = newer
	}
	return err
}

// unbounded is the capacity where nf_conntrack_max is 0, which means no bound to the kernel.
const unbounded = math.MaxInt32

// capacity returns how many entries this namespace may use: what the kernel allows, and no more than bound
// unless that is 0.
func (s sensors) capacity(bound int) (int, error) {
	most, err := s.table.Max()
	if most == 0 {
		most = unbounded
	}
	if bound > 0 {
		most = min(most, bound)
	}
	return most, err
}

// apply brings the kernel to the posture.
func (l *loop) apply(now time.Time) {
	desired := nft.Desired{Posture: l.decision.Posture, Allow: l.decision.Posture.Allow}
	if ok, err := l.actuator.intact(); err == nil && !ok {
		l.emit(policy.Event{Time: now, Kind: policy.RepairEvent,
			Reason: "rules of table inet ctguard went missing: made again"})
	}
	l.trouble("note", l.state.NoteUntracked(untracked(l.decision.Posture)))
	err := l.actuator.rules(desired, now)
	if l.trouble("rules", err); err != nil {
		l.decision.Posture.Caps = sparing(l.decision.Posture.Caps)
	}
	l.slowest = max(l.slowest, time.Since(now))
	// Reading two dozen settings costs more than the rest of the tick: look again each second.
	settings := l.decision.Posture.Settings
	if maps.Equal(settings, l.wanted.settings) && now.Sub(l.wanted.at) < time.Second {
		return
	}
	l.wanted = wanted{settings, now}
	changes, err := l.actuator.set(settings)
	l.trouble("settings", err)
	if len(changes) > 0 {
		l.emit(policy.Event{Time: now, Kind: policy.StepEvent, Reason: "settings: " + summary(changes)})
	}
}

// sparing returns caps that take no assured entry. Block, then evict: while the rules could not be
// written, what a source holds would come back at once.
func sparing(caps []policy.Cap) []policy.Cap {
	caps = slices.Clone(caps)
	for i := range caps {
		caps[i].SpareAssured = true
	}
	return caps
}

// summary lists changes of settings, the first few of them one by one.
func summary(changes []sysctl.Change) string {
	const most = 4
	var list []string
	for _, c := range changes[:min(most, len(changes))] {
		list = append(list, c.String())
	}
	if more := len(changes) - most; more > 0 {
		list = append(list, fmt.Sprintf("and %d more", more))
	}
	return strings.Join(list, ", ")
}
