package agent

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"ctguard/agent/sysctl"
	"ctguard/nft"
	"ctguard/policy"
)

// calmBelow is the pressure in percent below which nothing is about to go untracked, so that what the host's rules
// say may be a little older.
const calmBelow = 30

// tick is one turn of the loop: observe, decide, apply.
func (a *Agent) tick() {
	started := time.Now()
	o, err := a.observe(started)
	if a.trouble("observe", err); err != nil {
		a.decision.Next = a.config.Policy.Calm
		return
	}
	a.lookAround(started, o.Count)
	words := memory{a.machine.Override(), a.machine.Manual()}
	a.decision = a.machine.Tick(o)
	a.surveyor.host.Calm(a.decision.Posture.Level == 0 && a.decision.Pressure < calmBelow)
	if a.recorder != nil {
		a.trouble("record", a.recorder.record(o, words, a.decision.Posture.Level))
	}
	for _, e := range a.decision.Events {
		a.emit(e)
	}
	a.apply(started)
	a.publish(o, time.Since(started))
}

// observe reads everything that one tick needs. Without the count and the capacity there is nothing
// to decide on; anything else that can't be read stays as it was, and is told of.
func (a *Agent) observe(now time.Time) (policy.Observation, error) {
	o := policy.Observation{Time: now, Host: a.facts.Host, Adopted: a.adopted,
		Kernel: a.last.Kernel, Arrivals: a.last.Arrivals, Sockets: a.last.Sockets, Work: a.last.Work}
	var err error
	if o.Count, err = a.table.Count(); err != nil {
		return o, err
	}
	if o.Capacity, err = a.capacity(); err != nil {
		return o, err
	}
	var errs [4]error
	errs[0] = update(&o.Kernel, a.table.Counters)
	errs[1] = update(&o.Arrivals, a.stack.Arrivals)
	errs[2] = update(&o.Sockets, a.stack.Sockets)
	errs[3] = update(&o.Work, a.actuator.work)
	a.trouble("counters", errors.Join(errs[:]...))
	o.Work.Retimed = a.retimed
	if a.fresh {
		o.Census, a.fresh = a.census, false
	}
	a.last = o
	return o, nil
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

// capacity returns how many entries this namespace may use.
func (a *Agent) capacity() (int, error) {
	most, err := a.table.Max()
	if most == 0 {
		most = unbounded
	}
	if c := a.config.Capacity; c > 0 {
		most = min(most, c)
	}
	return most, err
}

// apply brings the kernel to the posture.
func (a *Agent) apply(now time.Time) {
	desired := nft.Desired{Posture: a.decision.Posture, Allow: a.facts.Allow}
	if ok, err := a.actuator.intact(); err == nil && !ok {
		a.emit(policy.Event{Time: now, Kind: policy.RepairEvent, Reason: "rules of table inet ctguard went missing: made again"})
	}
	a.trouble("note", a.note(untracked(a.decision.Posture)))
	err := a.actuator.rules(desired, now)
	if a.trouble("rules", err); err != nil {
		a.decision.Posture.Caps = sparing(a.decision.Posture.Caps)
	}
	a.slowest = max(a.slowest, time.Since(now))
	// Reading two dozen settings costs more than the rest of the tick: look again each second.
	wanted := a.decision.Posture.Settings
	if maps.Equal(wanted, a.setTo) && now.Sub(a.setAt) < time.Second {
		return
	}
	a.setTo, a.setAt = wanted, now
	changes, err := a.actuator.set(wanted)
	a.trouble("settings", err)
	if len(changes) > 0 {
		a.emit(policy.Event{Time: now, Kind: policy.StepEvent, Reason: "settings: " + summary(changes)})
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

// learn takes what was found out about the host, and reads the settings again: somebody else may
// have changed them.
func (a *Agent) learn(f facts) {
	f.Admin = a.facts.Admin
	a.facts = f
	a.trouble("survey", errors.Join(f.faults...))
	admin, err := a.settings.Admin()
	if a.trouble("read settings", err); err == nil {
		a.facts.Admin = admin
	}
}
