package policy

import (
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// purger finds the classes of UDP services, this host's own and forwarded ones, that a flood from spoofed addresses
// fills the table with. Each of its packets is answered, so early drop and fair shares take it for a client's. But
// a question and its answer need no entry afterwards: what is not assured can go as often as it must, and
// nobody is limited.
type purger struct {
	classes []FlowClass // until evict is left
	waiting []FlowClass // left to limits on the sources that fill them, for now
	grace
	handshakes bool // those that nobody finishes are purged, until evict is left
	// of what this host passes on, whom it asks; handshakes are TCP as a whole, and ask whoever
	passing map[FlowClass]netip.Addr
}

// How long what nobody answers or finishes may stay while it is purged: longer than almost every answer and round trip
// takes, and not longer than a table has room for that is about to be full.
const (
	unfinishedFor       = time.Second
	unfinishedForInNeed = 300 * time.Millisecond
)

// answeredFor is how long what is forwarded and was answered stays while it is purged: an answer of several datagrams
// is through by then. The kernel's early drop, whose turn it would be, asks for nothing like it.
const answeredFor = 100 * time.Millisecond

// want wants the classes purged while the table is crowded; entries that are assured stay.
func (u *purger) want(s situation, p *Posture) []Event {
	if !s.works {
		*u, s.shared.loose.purged = purger{}, false
		return nil
	}
	events := u.handshake(s, p)
	if s.Census != nil && (s.shared.crowded || s.growing()) {
		events = append(events, u.judge(s)...)
	}
	if s.fill >= waitBelow {
		for _, class := range u.waiting {
			events = append(events, u.take(s, class, "fills the table before its sources are limited"))
		}
		u.waiting = nil
	}
	if s.shared.crowded {
		for _, class := range u.classes {
			if s.serves(class) {
				p.purge(Purge{Class: class, Local: s.cfg.Profile == Auto, Unfinished: unfinishedForInNeed})
			}
			to, passing := u.passing[class]
			if translated := s.sendsOn(class); passing || translated {
				p.purge(Purge{Class: class, Passing: passing, To: to, Translated: translated, Unfinished: answeredFor})
			}
		}
	}
	return events
}

// serves reports whether a class is that of a UDP service of this host's own.
func (s situation) serves(class FlowClass) bool {
	return class.Protocol == udp && !s.cfg.everywhere() &&
		slices.Contains(s.Services, Selector{Protocol: UDP, Port: class.Port})
}

// sendsOn reports whether a class is that of a forwarded UDP service that is translated. What that says when its entry
// is gone must not leave with an inside address: a service of a host that nobody masquerades is none.
func (s situation) sendsOn(class FlowClass) bool {
	return class.Protocol == udp && slices.ContainsFunc(s.Services, func(one Selector) bool {
		first, last := one.Ports()
		host := one.Inside.Addr()
		return one.Translated() && one.Protocol == UDP && first <= class.Port && class.Port <= last &&
			(s.cfg.everywhere() || s.IsInside(netip.PrefixFrom(host, host.BitLen())))
	})
}

// purges reports whether something is purged that comes from everywhere.
func (u *purger) purges() bool { return len(u.classes) > 0 || u.handshakes }

// purgeable reports whether most of a UDP class that is not assured may be purged, as far as it was looked at: a flood
// may ask others at a port that this host serves, too. Where most of it only passes, to says whom it asks: who else is
// asked by way of this host may be so by somebody inside, whose entry lets the answers in.
func (s situation) purgeable(class FlowClass) (most bool, to netip.Addr) {
	serves, translated := s.serves(class), s.sendsOn(class)
	i := slices.IndexFunc(s.Census.Looks, func(c ClassLook) bool { return c.FlowClass == class })
	if class.Protocol != udp || i < 0 {
		return serves || translated, to
	}
	look, n := s.Census.Looks[i], 0
	if serves {
		n += look.Local
	}
	if translated {
		n += look.Translated
	}
	if look.To.IsValid() && !s.cfg.everywhere() {
		n += look.Passing
		to = look.To
	}
	return 2*n >= look.Entries, to
}

// flooded reports whether a class may be purged and holds a flood's share of the capacity, or is about to. share is in
// percent.
func (s situation) flooded(f classCount) (share float64, to netip.Addr, is bool) {
	most, to := s.purgeable(f.class)
	if !most || f.entries < enoughSeen || s.ordinaryClass(f.class) {
		return 0, to, false
	}
	share = s.Census.shareAhead(f.entries, s)
	return share, to, share >= s.cfg.ClassShare
}

// purgesMost reports whether most of what is not assured is of flooded classes that may be purged: then so is most of
// what anybody has too much of.
func (s situation) purgesMost() bool {
	sum := 0
	for _, f := range classes(s.Census) {
		if _, _, flooded := s.flooded(f); flooded {
			sum += f.entries
		}
	}
	return sum > 0 && float64(sum) >= sourcesPart*float64(s.Census.Seen-s.Census.Classes[Assured])
}

// passesHandshakes reports whether others shake hands by way of this host, untranslated.
func (c *Census) passesHandshakes() bool {
	return slices.ContainsFunc(c.Looks, func(c ClassLook) bool { return c.Protocol == tcp && c.Passing >= enoughSeen })
}

// judge takes up the services that hold a flood's share of the capacity, or are about to.
func (u *purger) judge(s situation) []Event {
	u.waiting = nil
	var events []Event
	for _, f := range classes(s.Census) {
		share, to, flooded := s.flooded(f)
		if !flooded || slices.Contains(u.classes, f.class) {
			continue
		}
		if to.IsValid() {
			u.pass(f.class, to)
		}
		if u.leaves(f, s.shared.suspects, s) {
			u.waiting = append(u.waiting, f.class)
			continue
		}
		events = append(events, u.take(s, f.class, fmt.Sprintf("holds %.0f %% of the capacity, or is about to", share)))
	}
	return events
}

// pass remembers whom a class asks that this host passes on.
func (u *purger) pass(class FlowClass, to netip.Addr) {
	if u.passing == nil {
		u.passing = make(map[FlowClass]netip.Addr)
	}
	u.passing[class] = to
}

// take begins to purge a class.
func (u *purger) take(s situation, class FlowClass, why string) Event {
	u.classes = append(u.classes, class)
	whose := "its entries that are not assured"
	if !s.serves(class) {
		whose = "its questions that were answered, and are no conversation,"
	}
	return Event{Kind: StepEvent, Step: Evict,
		Reason: fmt.Sprintf("%s %s: %s are purged while the table is crowded", class, why, whose)}
}

// handshake wants the handshakes purged that nobody finishes, those with this host's own services and those that it
// passes on untranslated, while a flood of them comes and neither synproxy nor notrack deals with it, as on a host that
// routes by the marks of connections. Early drop takes them too, but whichever it meets first, those that are about to
// be finished among them, and refuses who asks when it meets none. What was purged too soon is picked up by the ACK
// that finishes it, so tcp_loose is the administrator's.
func (u *purger) handshake(s situation, p *Posture) []Event {
	before, all := u.handshakes, FlowClass{Protocol: tcp}
	flood := (before || s.synFlood && s.shared.crowded) && picksUp(s) && !s.oneSided() && !s.cfg.everywhere()
	if flood && s.Census != nil && s.Census.passesHandshakes() {
		u.pass(all, netip.Addr{})
	}
	_, passing := u.passing[all]
	own := exposed(s)
	u.handshakes = flood && (own || passing)
	s.shared.loose.purged = u.handshakes
	if u.handshakes && s.shared.crowded {
		long := unfinishedFor
		if s.pressure >= 100 {
			long = unfinishedForInNeed
		}
		// What this host asks others for itself is not picked up: an answer without an entry is INVALID.
		p.purge(Purge{Class: all, Local: own, Passing: passing, Handshakes: true, Unfinished: long})
	}
	if before || !u.handshakes {
		return nil
	}
	return []Event{{Kind: StepEvent, Step: Evict, Reason: fmt.Sprintf("handshakes under way hold %.0f %% of the "+
		"capacity, or are about to: those that nobody finishes are purged while the table is crowded", s.halfOpen)}}
}

// picksUp reports whether a connection that lost its entry before it was finished gets another one: the kernel makes
// it, and the host's filter lets a segment through that is no SYN.
func picksUp(s situation) bool { return s.Admin[tcpLoose] != 0 && s.BySYN == "" }

// exposed reports whether this host has TCP services whose handshakes make entries.
func exposed(s situation) bool {
	return slices.ContainsFunc(s.Listeners, func(one Selector) bool {
		return !one.Forwarded() && !s.shared.mayGo(one) && !slices.Contains(s.shared.proxied, one)
	})
}
