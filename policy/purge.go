package policy

import (
	"fmt"
	"slices"
)

// purger finds the classes of this host's own UDP services that a flood from spoofed addresses fills the
// table with. Each of its packets is answered, so early drop and fair shares take it for a client's. But
// a question and its answer need no entry afterwards: what is not assured can go as often as it must, and
// nobody is held back.
type purger struct {
	classes []FlowClass // until evict is left
	waiting []FlowClass // left to limits on the sources that fill them, for now
	patience
}

// IP protocol numbers.
const (
	tcp = 6
	udp = 17
)

// update returns the classes whose entries are to be deleted now, those that are assured apart. whose says
// whose the passing entries are by the newest census; see [patience].
func (u *purger) update(o Observation, r reading, on, crowded bool, whose blame, c Config) ([]FlowClass, []Event) {
	if !on || c.Profile != Server {
		*u = purger{}
		return nil, nil
	}
	var events []Event
	if o.Census != nil && (crowded || r.growing()) {
		events = u.judge(o, r, whose, c)
	}
	if r.fill >= waitBelow {
		for _, class := range u.waiting {
			events = append(events, u.take(class, "fills the table before its sources are held back"))
		}
		u.waiting = nil
	}
	if !crowded {
		return nil, events
	}
	return u.classes, events
}

// judge takes up the services that hold a flood's share of the capacity, or are about to.
func (u *purger) judge(o Observation, r reading, whose blame, c Config) []Event {
	u.waiting = nil
	var events []Event
	for _, f := range classes(o.Census) {
		service := Selector{Protocol: UDP, Port: f.class.Port}
		if f.class.Protocol != udp || slices.Contains(u.classes, f.class) || !slices.Contains(o.Services, service) {
			continue
		}
		share := o.Census.shareAhead(f.entries, o, r)
		if f.entries < enoughSeen || share < c.ClassShare {
			continue
		}
		if u.leaves(f, whose, o, r) {
			u.waiting = append(u.waiting, f.class)
			continue
		}
		events = append(events, u.take(f.class, fmt.Sprintf("holds %.0f %% of the capacity, or is about to", share)))
	}
	return events
}

// take begins to purge a class.
func (u *purger) take(class FlowClass, why string) Event {
	u.classes = append(u.classes, class)
	return Event{Kind: StepEvent, Step: Evict,
		Reason: fmt.Sprintf("%s %s: its entries that are not assured are purged while the table is crowded", class, why)}
}

// withLeftovers returns the classes to be purged, and those of which no new entries come: what nobody
// answers would stay for minutes, and so would the handshakes from before synproxy answered them.
func (p Posture) withLeftovers() []FlowClass {
	all := slices.Clone(p.Purges)
	add := func(class FlowClass) {
		if !slices.Contains(all, class) {
			all = append(all, class)
		}
	}
	for _, b := range p.Budgets {
		add(b.Class)
	}
	if !p.LastCookies {
		for _, port := range p.Synproxy {
			add(FlowClass{tcp, port})
		}
	}
	return all
}
