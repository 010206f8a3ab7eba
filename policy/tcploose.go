package policy

import (
	"fmt"
	"maps"
	"net/netip"
	"time"
)

// tcpLoose is the setting with which conntrack picks connections up in the middle.
const tcpLoose = "nf_conntrack_tcp_loose"

// looseArbiter decides whether tcp_loose is 0, which is nobody's step: what holds TCP to the connections that
// conntrack knows wants it so. But connections that live untracked, or did until a moment ago, must not
// meet that, and no more may those that conntrack has not seen from their beginning.
type looseArbiter struct {
	needEntries bool // TCP connections that lived untracked may lack entries
	untracked   bool // TCP services live untracked, or are about to
	purged      bool // by evict: handshakes may lose their entries before they are finished
	strict      bool // a step wants tcp_loose=0

	stretch                      // what lives is picked up again meanwhile
	why     string               // the reason of that
	told    time.Time            // the until that was told of
	evicted map[Source]time.Time // sources whose entries were evicted lately
}

// Connections are picked up in the middle for pickUpFor after it was needed: those that are silent longer are kept
// alive by the keepalives of ssh and of most other protocols, which come every minute or two. When it is needed
// again soon, it lasts longer each time.
const pickUpFor = 2 * time.Minute

// pickingUp reports whether connections that conntrack does not know are picked up, as they had to be a moment ago.
func (a *looseArbiter) pickingUp(now time.Time) bool { return a.on(now) }

// pickUp lets connections be picked up from now on.
func (a *looseArbiter) pickUp(now time.Time, why string) {
	a.begin(now, pickUpFor)
	a.why = why
}

// So many connections that conntrack can't place, of hosts that are usually here or of anybody, are more than the late
// packets of connections that are over; a host whose ordinary day has INVALID packets has more of those.
const (
	usualStrays = 1
	anyStrays   = 2
	strayTime   = 3 // seconds that a stray is remembered for
)

// evictedFor is how long the strays of a source that was above its share are its own affair: its connections go on
// without their entries because ctguard took them.
const evictedFor = 10 * time.Minute

// watch looks whether what is dropped as INVALID are connections that live: a route turned, this host took over from
// another one, or an entry was gone too soon.
func (a *looseArbiter) watch(s situation) {
	a.remember(s.Time, s.before.Caps)
	if len(s.Work.Strays) == 0 || a.pickingUp(s.Time) {
		return
	}
	evicted, limited := within(a.evicted), within(limitedSources(s.before.Limits))
	usually := within(s.ordinary.Sources)
	taken := func(end netip.Addr) bool { return !usually(end) && (evicted(end) || limited(end)) }
	usual, all := 0, 0
	for _, stray := range s.Work.Strays {
		if taken(stray.Source) || taken(stray.Destination) {
			continue
		}
		all++
		if usually(stray.Source) {
			usual++
		}
	}
	if late := int(strayTime * s.ordinary.Invalid); usual >= usualStrays+late || all >= anyStrays+late {
		a.pickUp(s.Time, fmt.Sprintf("%d connections go on that conntrack can't place (a route or an address that moved, or "+
			"an entry gone too soon?)", all))
	}
}

// remember notes whose entries are evicted.
func (a *looseArbiter) remember(now time.Time, caps []Cap) {
	maps.DeleteFunc(a.evicted, func(_ Source, at time.Time) bool { return now.Sub(at) > evictedFor })
	for _, c := range caps {
		if a.evicted == nil {
			a.evicted = make(map[Source]time.Time)
		}
		a.evicted[c.Source()] = now
	}
}

func limitedSources(limits []Limit) map[Source]struct{} {
	m := make(map[Source]struct{}, len(limits))
	for _, l := range limits {
		m[l.Source()] = struct{}{}
	}
	return m
}

// within returns a function that tells whether an address lies in the prefix of one of the sources, whatever its zone:
// of a stray nobody knows that.
func within[T any](sources map[Source]T) func(netip.Addr) bool {
	prefixes, lengths := make(map[netip.Prefix]struct{}, len(sources)), make(map[int]bool)
	for s := range sources {
		prefixes[s.Prefix], lengths[s.Prefix.Bits()] = struct{}{}, true
	}
	return func(a netip.Addr) bool {
		for bits := range lengths {
			if p, err := a.Prefix(bits); err == nil {
				if _, found := prefixes[p]; found {
					return true
				}
			}
		}
		return false
	}
}

// mustStay reports whether tcp_loose must keep the administrator's value, which is not 0.
func (a *looseArbiter) mustStay(o Observation) bool {
	return o.Admin[tcpLoose] != 0 && (a.needEntries || a.untracked || a.purged || a.pickingUp(o.Time))
}

// decide writes the outcome into p, once every step has said what it wants, and says when connections are picked up
// that a step would have dropped.
func (a *looseArbiter) decide(o Observation, p *Posture) []Event {
	if a.needEntries || a.pickingUp(o.Time) {
		p.DropInvalid = false
	}
	if a.strict && !a.mustStay(o) && o.Admin[tcpLoose] != 0 {
		p.Settings[tcpLoose] = 0
	}
	if !a.pickingUp(o.Time) || !a.strict || a.told.Equal(a.until) {
		return nil
	}
	a.told = a.until
	return []Event{{Kind: StepEvent, Step: DropInvalid, Reason: fmt.Sprintf(
		"connections are picked up in the middle for %s: %s", a.until.Sub(o.Time).Round(time.Second), a.why)}}
}
