package policy

import (
	"cmp"
	"encoding/binary"
	"math"
	"net/netip"
	"slices"
	"time"
)

// scan makes the census that a decision asked for.
func (w *world) scan(d Decision) {
	pause := 500 * time.Millisecond
	if d.Scan == SampleScan {
		pause = 2 * time.Second
	}
	if d.Scan == NoScan || w.now.Sub(w.scanned) < pause {
		return
	}
	w.scanned = w.now
	tally := newTally(w.now)
	tally.inside = Host{Inside: w.inside}
	for _, g := range w.groups {
		for _, s := range g.sources {
			if n := int(math.Round(s.entries)); n > 0 {
				tally.ports(g, n)
				tally.source(g, s, n)
			}
			if s.came.Watched > 0 {
				tally.c.Comebacks = append(tally.c.Comebacks, s.came)
			}
			tally.oneWay(g, s)
		}
		tally.silence(g, WatchedFloors(w.floors, w.admin))
	}
	w.census = tally.census()
}

// tally adds up a census.
type tally struct {
	c       *Census
	byPort  map[FlowClass]*PortCount
	sources map[netip.Prefix]*Holding
	inside  Host
}

func newTally(now time.Time) *tally {
	c := &Census{Time: now, Whole: true,
		Protocols: map[uint8]int{}, ProtocolsReplied: map[uint8]int{}, TCPStates: map[uint8]int{}}
	return &tally{c: c, byPort: make(map[FlowClass]*PortCount), sources: make(map[netip.Prefix]*Holding)}
}

// ports counts n entries of one source by what they go to.
func (y *tally) ports(g *group, n int) {
	class, replied := g.flowClass(), 0
	if g.class != Unreplied {
		replied = n
	}
	y.c.Seen += n
	y.c.Classes[g.class] += n
	y.c.Protocols[class.Protocol] += n
	y.c.ProtocolsReplied[class.Protocol] += replied
	if class.Port == 0 {
		return
	}
	if y.byPort[class] == nil {
		y.byPort[class] = &PortCount{Protocol: class.Protocol, Port: class.Port}
	}
	y.byPort[class].Entries += n
	y.byPort[class].Replied += replied
}

// oneWay lists the one-way flows of a source. A packet has renewed each a moment ago, but those of strays.
func (y *tally) oneWay(g *group, s *source) {
	for i := range int(math.Round(s.entries)) {
		if !g.oneWay && !g.stray || len(y.c.OneWay) == mostOneWay {
			return
		}
		left := 300.0 // nf_conntrack_tcp_timeout_unacknowledged
		if g.stray {
			left -= math.Mod(y.c.Time.Sub(g.began).Seconds(), left)
		}
		a := s.prefix.Addr().As16()
		id := binary.BigEndian.Uint32(a[12:])<<8 + uint32(i)
		y.c.OneWay = append(y.c.OneWay, OneWayFlow{ID: id, Left: uint32(left)})
	}
}

// silence tells how long conversations of a group were silent before they went on, where a scan looks for that.
func (y *tally) silence(g *group, watched map[string]int) {
	floor, looked := watched[g.timeout]
	if seconds := int(g.every.Seconds()); looked && seconds > floor && y.c.Time.Sub(g.began) > g.every {
		if y.c.Silences == nil {
			y.c.Silences = make(map[string]int)
		}
		y.c.Silences[g.timeout] = max(y.c.Silences[g.timeout], seconds)
	}
}

// source counts n entries of one source by whose they are.
func (y *tally) source(g *group, s *source, n int) {
	if g.random {
		y.c.Rest.Entries += n
		y.c.Rest.Classes[g.class] += n
		y.c.Distinct += n
		return
	}
	if y.sources[s.prefix] == nil {
		y.sources[s.prefix] = &Holding{Prefix: s.prefix}
		y.c.Distinct++
	}
	y.sources[s.prefix].Entries += n
	y.sources[s.prefix].Classes[g.class] += n
	if g.class == Assured && g.flowClass().Protocol == tcp {
		y.sources[s.prefix].Proven += n
	}
	if y.inside.IsInside(s.prefix) {
		y.look(g, y.sources[s.prefix], n)
	}
}

// look counts n entries of an inside host by their class.
func (y *tally) look(g *group, h *Holding, n int) {
	if h.Look == nil {
		h.Look = &Look{}
	}
	count := FlowCount{g.flowClass(), n, 0}
	if g.class > HalfOpen {
		count.Answered = n
	}
	h.Look.Entries += n
	h.Look.Forwarded += n
	h.Look.Answered += count.Answered
	h.Look.Flows = append(h.Look.Flows, count)
}

// census returns what was counted, the largest sources first.
func (y *tally) census() *Census {
	y.c.Total = y.c.Seen
	for _, p := range y.byPort {
		y.c.Ports = append(y.c.Ports, *p)
	}
	for _, h := range y.sources {
		y.c.Sources = append(y.c.Sources, *h)
	}
	slices.SortFunc(y.c.Sources, func(a, b Holding) int {
		return cmp.Or(cmp.Compare(b.Entries, a.Entries), a.Prefix.Addr().Compare(b.Prefix.Addr()))
	})
	return y.c
}
