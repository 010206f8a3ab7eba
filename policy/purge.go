package policy

import (
	"fmt"
	"slices"
)

// purger finds the classes of this host's own UDP services that a flood from spoofed addresses fills the
// table with. Each of its packets is answered, so early drop and fair shares take it for a client's. But
// a question and its answer need no entry afterwards: what is not assured can go as often as it must, and
// nobody is limited.
type purger struct {
	classes []FlowClass // until evict is left
	waiting []FlowClass // left to limits on the sources that fill them, for now
	grace
}

// want wants the classes purged while the table is crowded; entries that are assured stay.
func (u *purger) want(s situation, p *Posture) []Event {
	if !s.works || s.cfg.everywhere() {
		*u = purger{}
		return nil
	}
	var events []Event
	if s.Census != nil && (s.shared.crowded || s.growing()) {
		events = u.judge(s)
	}
	if s.fill >= waitBelow {
		for _, class := range u.waiting {
			events = append(events, u.take(class, "fills the table before its sources are limited"))
		}
		u.waiting = nil
	}
	if s.shared.crowded {
		for _, class := range u.classes {
			p.purge(Purge{class, s.cfg.Profile == Auto})
		}
	}
	return events
}

// judge takes up the services that hold a flood's share of the capacity, or are about to.
func (u *purger) judge(s situation) []Event {
	u.waiting = nil
	var events []Event
	for _, f := range classes(s.Census) {
		service := Selector{Protocol: UDP, Port: f.class.Port}
		if f.class.Protocol != udp || slices.Contains(u.classes, f.class) || !slices.Contains(s.Services, service) ||
			s.ordinaryClass(f.class) {
			continue
		}
		share := s.Census.shareAhead(f.entries, s)
		if f.entries < enoughSeen || share < s.cfg.ClassShare {
			continue
		}
		if u.leaves(f, s.shared.suspects, s) {
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
