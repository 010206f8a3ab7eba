package conntrack

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"ctguard/policy"
)

// Bounds of what is remembered of evicted conversations.
const (
	mostTaken     = 4096             // conversations in all
	mostOfOne     = 64               // of one source: enough to tell what part of them comes back
	takenFor      = 10 * time.Minute // how long one is looked for
	takenAtLeast  = time.Minute      // and how long before it makes room for another one
	sweepTakenFor = 10 * time.Second // how often those that are too old are looked for
)

// comebacks remembers conversations that evictions took, and finds those that are there again: somebody speaks on both
// sides, so they were no flood's. It is used by one walk at a time.
type comebacks struct {
	taken   map[conversation]*taken
	sources map[policy.Source]*policy.Comeback
	swept   time.Time
	now     time.Time // of the walk under way
	made    bool      // room was made in it
	ofOne   int       // how many of one source this eviction may remember
}

// conversation is what is the same of an entry whichever side speaks first: an entry that comes back is made by the
// next packet, and its original direction is that packet's.
type conversation struct {
	one, other         address
	onePort, otherPort uint16
	zone               uint16
	proto              uint8
}

// taken is a conversation that was evicted.
type taken struct {
	source policy.Source
	at     time.Time
	back   bool
}

func conversationOf(t *tuple, zone uint16) conversation {
	order := cmp.Or(cmp.Compare(t.src.hi, t.dst.hi), cmp.Compare(t.src.lo, t.dst.lo), cmp.Compare(t.srcPort, t.dstPort))
	if order > 0 {
		return conversation{t.dst, t.src, t.dstPort, t.srcPort, zone, t.proto}
	}
	return conversation{t.src, t.dst, t.srcPort, t.dstPort, zone, t.proto}
}

// beginEviction prepares for the conversations of so many sources.
func (c *comebacks) beginEviction(now time.Time, sources int) {
	c.begin(now)
	c.ofOne = max(1, min(mostOfOne, mostTaken/max(1, sources)))
}

// begin prepares for a walk: what was evicted long ago is forgotten.
func (c *comebacks) begin(now time.Time) {
	if c.now, c.made = now, false; now.Sub(c.swept) >= sweepTakenFor {
		c.swept = now
		c.forget(takenFor)
	}
}

// forget drops what was evicted longer ago than age.
func (c *comebacks) forget(age time.Duration) {
	maps.DeleteFunc(c.taken, func(_ conversation, t *taken) bool {
		old := c.now.Sub(t.at) > age
		if of := c.sources[t.source]; old && of != nil {
			if of.Watched--; t.back {
				of.Back--
			}
			if of.Watched <= 0 {
				delete(c.sources, t.source)
			}
		}
		return old
	})
}

// take notes that an eviction takes an entry of a source away. Flows that hardware forwards stay as a rule: their
// deletion is refused.
func (c *comebacks) take(source policy.Source, e *entry) {
	if e.class(false) != policy.Assured || e.status&(statusOffload|statusHWOffload) != 0 {
		return
	}
	if c.wants(source) {
		c.remember(source, conversationOf(&e.orig, e.zone()))
	}
}

// takeRecord is take for what is remembered of an entry of the class Assured.
func (c *comebacks) takeRecord(source policy.Source, r *record) {
	var e entry
	if c.wants(source) && e.parse(append(make([]byte, familyLen, familyLen+recordBytes), r.attributes()...)) {
		c.remember(source, conversationOf(&e.orig, e.zone()))
	}
}

// wants counts a conversation that is taken from a source, and says whether it is worth remembering.
func (c *comebacks) wants(source policy.Source) bool {
	room := c.room() // first, for it forgets sources
	if of := c.sources[source]; of != nil {
		of.Taken++
		return room && of.Watched < c.ofOne
	}
	if !room {
		return false
	}
	if c.sources == nil {
		c.sources, c.taken = make(map[policy.Source]*policy.Comeback), make(map[conversation]*taken)
	}
	c.sources[source] = &policy.Comeback{Source: source, Taken: 1}
	return true
}

// room says whether another conversation may be remembered. When there is none, those that had their time to come back
// go, at most once a walk.
func (c *comebacks) room() bool {
	if len(c.taken) >= mostTaken && !c.made {
		c.made = true
		c.forget(takenAtLeast)
	}
	return len(c.taken) < mostTaken
}

// remember keeps one that [comebacks.wants] wanted. One that was back already and is taken again stays one that came
// back.
func (c *comebacks) remember(source policy.Source, key conversation) {
	of := c.sources[source]
	if was := c.taken[key]; was != nil {
		was.at = c.now
		if of.Taken--; of.Watched == 0 { // the conversation is remembered as the other side's
			delete(c.sources, source)
		}
		return
	}
	c.taken[key] = &taken{source: source, at: c.now}
	of.Watched++
}

// look looks whether an entry is a conversation that was taken. It counts as back when both sides speak: UDP that is a
// stream again, TCP that was picked up in the middle, and not one that began with a new handshake.
func (c *comebacks) look(e *entry) {
	if e.class(false) != policy.Assured {
		return
	}
	was := c.taken[conversationOf(&e.orig, e.zone())]
	if was == nil || was.back || e.protoInfo == protoInfoTCP && !e.pickedUp() {
		return
	}
	was.back = true
	c.sources[was.source].Back++
}

// pickedUp says whether an entry of TCP checks no windows, as one whose first packet was in the middle of a connection
// (tcp_new in net/netfilter/nf_conntrack_proto_tcp.c).
func (e *entry) pickedUp() bool {
	orig, reply := e.tcpFlags()
	return (orig|reply)&tcpBeLiberal != 0
}

// list returns what became of each source's, in the order of the sources.
func (c *comebacks) list() []policy.Comeback {
	var all []policy.Comeback
	for _, of := range c.sources {
		all = append(all, *of)
	}
	slices.SortFunc(all, func(a, b policy.Comeback) int { return a.Source.Compare(b.Source) })
	return all
}
