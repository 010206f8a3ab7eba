package policy

import (
	"maps"
	"math"
	"net/netip"
	"slices"
	"time"
)

// world is a model of a host and its conntrack table for the scenarios: groups of like sources that
// open flows at a rate, entries that expire, a kernel that refuses what does not fit. It does with a
// posture what the kernel does: flows of untracked services make no entries, limited sources open at
// most LimitRate a second, shorter timeouts expire sooner.
type world struct {
	now         time.Time
	start       time.Time
	capacity    int
	admin       map[string]int
	services    []Selector
	lane        []Selector
	others      float64 // flows that who is not allowlisted may still open, while there is a reserve
	refused     map[Selector]string
	broken      map[Selector]bool // the host's own rules drop it untracked
	unsupported map[StepName]string
	room        int
	listen      []Selector
	stuck       bool // the host's own rules drop what synproxy opens
	adopted     time.Time
	allow       []netip.Prefix
	inside      []netip.Prefix
	groups      []*group
	kernel      KernelCounters
	arrivals    Arrivals
	work        Work
	census      *Census
	scanned     time.Time
	freed       map[Selector]bool
	peak        float64
	refusedN    float64
	total       float64 // entries in the table
	unlisted    float64 // of them, that a dump does not list
	settings    map[string]int
	floors      map[string]int
}

// group is sources that do the same.
type group struct {
	name    string
	sources []*source
	class   Class
	life    float64 // seconds that an entry lasts at the administrator's timeouts
	rate    float64 // new flows per second of each source
	to      Selector
	timeout string        // the setting that its entries' life scales with
	random  bool          // every flow comes from an address of its own (spoofed)
	closed  bool          // no socket waits for it
	over    bool          // finished with its answer
	speaks  bool          // what is evicted goes on: the next packet makes its entry again
	stray   bool          // ACKs without a connection: with tcp_loose=0 they make no entry
	oneWay  bool          // connections of which this host sees one direction: unanswered, and renewed all the time
	every   time.Duration // each conversation is silent for so long, then goes on; 0 for never that long
	pulse   [2]time.Duration
	began   time.Time
	stopped bool
	taken   float64 // entries that ctguard took
}

type source struct {
	prefix    netip.Prefix
	entries   float64
	untracked float64 // connections without an entry
	lost      float64 // conversations that were evicted and speak in a moment
	flushed   float64 // conversations whose entries are gone: they are picked up where tcp_loose allows it
	cut       float64 // conversations that are lost: an entry expired in a silence, or is not made for the middle of one
	came      Comeback
}

// timeouts of entries by class, for flows over TCP.
var classTimeout = map[Class]string{
	Unreplied: "nf_conntrack_udp_timeout",
	HalfOpen:  "nf_conntrack_tcp_timeout_syn_recv",
	Closing:   "nf_conntrack_tcp_timeout_time_wait",
	Replied:   "nf_conntrack_udp_timeout",
	Assured:   "nf_conntrack_tcp_timeout_established",
}

func newWorld() *world {
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	admin := map[string]int{
		tcpLoose: 1, tcpLiberal: 0,
		"nf_conntrack_tcp_timeout_established": 432000, "nf_conntrack_tcp_timeout_time_wait": 120,
		"nf_conntrack_tcp_timeout_syn_recv": 60, "nf_conntrack_udp_timeout": 30,
	}
	return &world{now: start, start: start, capacity: 65536, admin: admin,
		freed: map[Selector]bool{}, broken: map[Selector]bool{},
		unsupported: map[StepName]string{ClosedPorts: "the story says nothing of closed ports"},
		refused:     map[Selector]string{}, work: Work{Selectors: map[Selector]SelectorWork{}}}
}

// observe is what the agent would see now.
func (w *world) observe() Observation {
	w.count()
	o := Observation{Time: w.now, Count: int(w.total), Capacity: w.capacity, Kernel: w.kernel, Arrivals: w.arrivals,
		Work: w.work, Census: w.census, Adopted: w.adopted, Host: Host{
			Admin: w.admin, Allow: w.allow, Inside: w.inside, Services: w.services, Lane: w.lane, Refused: w.refused,
			Unsupported: w.unsupported, MaxEntries: w.room, Listeners: w.listen,
			Handshake: Handshake{MSS4: 1460, MSS6: 1440, WindowScale: 7, SACK: true, Timestamps: true},
		}}
	o.Capacity = w.bound(Posture{Settings: w.settings})
	for _, g := range w.groups {
		if g.class == Assured && slices.Contains(w.services, g.to) {
			for _, s := range g.sources {
				o.Sockets += int(s.entries + s.untracked)
			}
		}
	}
	o.Work.Selectors = maps.Clone(w.work.Selectors)
	w.census = nil
	return o
}

// count adds up the table.
func (w *world) count() {
	w.total = w.unlisted
	for _, g := range w.groups {
		for _, s := range g.sources {
			w.total += s.entries
		}
	}
}

// advance lets time pass with a posture in force.
func (w *world) advance(d Decision) {
	dt := d.Next.Seconds()
	p := d.Posture
	if len(p.Adopt) > 0 {
		w.adopt(p.Adopt)
	}
	w.now = w.now.Add(d.Next)
	limited := make(map[netip.Prefix]Limit)
	for _, l := range p.Limits {
		limited[l.Prefix] = l
	}
	for _, g := range w.groups {
		life := g.life
		if setting, ok := p.Settings[g.timeout]; ok {
			life *= float64(setting) / float64(w.admin[g.timeout])
		}
		stay := math.Exp(-dt / life)
		for _, s := range g.sources {
			s.entries *= stay
			s.untracked *= math.Exp(-dt / g.life)
		}
	}
	w.count()
	w.others = float64(p.Reserve.Rate) * dt
	for _, g := range w.groups {
		for _, s := range g.sources {
			w.comeBack(s, p)
			w.pickUp(s, p)
			w.open(g, s, p, limited, dt)
		}
	}
	w.retime(p)
	w.silences()
	w.retire(p)
	w.free(p)
	w.evict(p)
	w.purge(p)
	w.count()
	w.scan(d)
	w.peak = max(w.peak, 100*w.total/float64(w.bound(p)))
}

// adopt gives the connections that were opened untracked and last their entries.
func (w *world) adopt(selectors []Selector) {
	for _, g := range w.groups {
		if slices.Contains(selectors, g.to) {
			for _, s := range g.sources {
				s.entries += s.untracked
				s.untracked = 0
			}
		}
	}
	w.adopted = w.now
}

// retime counts the entries that a shorter timeout reaches.
func (w *world) retime(p Posture) {
	for _, g := range w.groups {
		value, set := p.Settings[g.timeout]
		was, ok := w.settings[g.timeout]
		if !ok {
			was = w.admin[g.timeout]
		}
		if set && value < was {
			for _, s := range g.sources {
				w.work.Retimed += uint64(s.entries)
			}
		}
	}
	w.settings = p.Settings
}

// silences cuts the conversations that are silent for longer than their entries last.
func (w *world) silences() {
	for _, g := range w.groups {
		if timeout, set := w.settings[g.timeout]; set && float64(timeout) < g.every.Seconds() {
			for _, s := range g.sources {
				s.entries, s.cut = 0, s.cut+s.entries
			}
		}
	}
}

// passLimit returns how many of the flows that a source opens in dt seconds its limit lets through.
func (w *world) passLimit(g *group, s *source, p Posture, limited map[netip.Prefix]Limit, flows, dt float64) float64 {
	l, ok := limited[s.prefix]
	if !ok {
		l, ok = limited[Config{FoldV4: 24, FoldV6: 48}.folded(Source{Prefix: s.prefix}).Prefix]
	}
	switch {
	case !ok || len(l.Flows) > 0 && !slices.Contains(l.Flows, g.flowClass()):
		return flows
	case l.Kind == Block:
		w.work.BlockedDropped += uint64(flows)
		return 0
	}
	pass := min(flows, float64(p.LimitRate)*dt)
	w.work.LimitedDropped += uint64(math.Round(flows - pass))
	return pass
}

// open lets one source open flows for dt seconds.
func (w *world) open(g *group, s *source, p Posture, limited map[netip.Prefix]Limit, dt float64) {
	flows := g.flows(w.now) * dt
	if flows == 0 {
		return
	}
	if g.oneWay && strict(p) {
		s.cut += flows
	}
	flows = w.passLimit(g, s, p, limited, flows, dt)
	if flows = w.passBefore(g, p, flows, dt); flows == 0 {
		return
	}
	if g.class != HalfOpen {
		w.arrivals.TCPOpens += uint64(math.Round(flows))
	}
	for _, n := range p.Notrack {
		if (Selector{Protocol: n.Selector.Protocol, Port: n.Selector.Port}) != g.to {
			continue
		}
		c := w.work.Selectors[n.Selector]
		k := uint64(math.Ceil(flows))
		switch {
		case p.Uncounted && n.Stage == Trial:
			c.Asked += 3 * k
		case p.Uncounted && n.Stage != Watched:
			w.work.FreedOpened += k
		case p.Uncounted:
		default:
			c.Requests, c.New = c.Requests+3*k, c.New+k
			if !w.broken[g.to] || n.Stage == Watched {
				c.Delivered, c.Replies, c.Sent = c.Delivered+3*k, c.Replies+2*k, c.Sent+2*k
			}
		}
		w.work.Selectors[n.Selector] = c
		if n.Stage != Watched {
			if g.class == Assured && !w.broken[g.to] {
				s.untracked += flows
			}
			return
		}
	}
	if r := p.Reserve; r.Engaged && !slices.ContainsFunc(w.allow, s.prefix.Overlaps) {
		pass := min(flows, w.others)
		w.work.ReserveDropped += uint64(math.Round(flows - pass))
		flows, w.others = pass, w.others-pass
	}
	free := max(0, float64(w.bound(p))-w.total)
	if flows > free {
		w.kernel.Drop += uint64(flows - free)
		w.refusedN += flows - free
		flows = free
	}
	s.entries += flows
	w.total += flows
}

// bound is how many entries the table may hold under a posture.
func (w *world) bound(p Posture) int {
	if grown, set := p.Settings[tableMax]; set {
		return grown
	}
	return w.capacity
}

// passBefore returns how many of the flows that a group opens in dt seconds get past closed-ports, the
// budgets and synproxy.
func (w *world) passBefore(g *group, p Posture, flows, dt float64) float64 {
	if g.closed && p.ClosedPorts {
		pass := min(flows, float64(p.ClosedRate)*dt/float64(len(g.sources)))
		w.work.ClosedDropped += uint64(math.Ceil(flows - pass))
		return pass
	}
	if (g.stray || g.oneWay) && strict(p) {
		w.kernel.Invalid += uint64(math.Ceil(flows))
		w.work.InvalidDropped += uint64(math.Ceil(flows))
		return 0
	}
	for _, b := range p.Budgets {
		if !g.stray && b.Class == g.flowClass() {
			pass := min(flows, float64(b.Rate)*dt/float64(len(g.sources)))
			w.work.BudgetDropped += uint64(math.Round(flows - pass))
			flows = pass
		}
	}
	if flows > 0 && slices.Contains(p.Learn, g.to) {
		w.work.InsideMSS = map[Selector]uint16{g.to: 1460}
	}
	if !slices.Contains(p.Synproxy, g.to) {
		return flows
	}
	w.work.Proxied.SYNs += uint64(math.Ceil(flows))
	if g.class == HalfOpen {
		return 0
	}
	services := maps.Clone(w.work.Proxied.Services)
	if services == nil {
		services = make(map[Selector]ProxiedService)
	}
	one := services[g.to]
	one.Completed += uint64(math.Ceil(flows))
	if w.stuck {
		flows = 0
	}
	one.Delivered += uint64(math.Ceil(flows))
	services[g.to] = one
	w.work.Proxied.Services = services
	return flows
}

// flowClass is the class of a group's flows.
func (g *group) flowClass() FlowClass {
	return FlowClass{map[Protocol]uint8{TCP: 6, UDP: 17, "": 253}[g.to.Protocol], g.to.Port}
}

// flows returns how many flows a second each source opens now.
func (g *group) flows(now time.Time) float64 {
	if g.stopped {
		return 0
	}
	if on, off := g.pulse[0], g.pulse[1]; on > 0 && now.Sub(g.began)%(on+off) >= on {
		return 0
	}
	return g.rate
}

// retire lets finished entries go that have been silent for long enough.
func (w *world) retire(p Posture) {
	for _, g := range w.groups {
		if !g.over || p.Retire.Silent == 0 {
			continue
		}
		for _, s := range g.sources {
			if n := s.entries - g.flows(w.now)*p.Retire.Silent.Seconds(); n > 0 {
				s.entries -= n
				w.work.Evicted += uint64(n)
				w.work.Retired += uint64(n)
			}
		}
	}
}

// free takes the entries of selectors out that were freed.
func (w *world) free(p Posture) {
	freed := make(map[Selector]bool)
	for _, n := range p.Notrack {
		freed[n.Selector] = n.Stage == Freed
		if n.Stage != Freed || w.freed[n.Selector] {
			continue
		}
		for _, g := range w.groups {
			if g.to == n.Selector {
				for _, s := range g.sources {
					w.work.Evicted += uint64(s.entries)
					if g.class == Assured {
						s.untracked += s.entries
					}
					s.entries = 0
				}
			}
		}
	}
	w.freed = freed
}

// evict carries caps out.
func (w *world) evict(p Posture) {
	caps := make(map[netip.Prefix]Cap)
	for _, c := range p.Caps {
		caps[c.Prefix] = c
	}
	for _, g := range w.groups {
		for _, s := range g.sources {
			c, capped := caps[s.prefix]
			if capped && s.entries > float64(c.Keep) && (!c.SpareAssured || g.class != Assured) {
				w.take(g, s, s.entries-float64(c.Keep))
			}
		}
	}
}

// take evicts so many entries of a source.
func (w *world) take(g *group, s *source, n float64) {
	w.work.Evicted += uint64(n)
	s.entries, g.taken = s.entries-n, g.taken+n
	if g.oneWay {
		s.flushed += n
	}
	if g.class != Assured {
		return
	}
	s.came.Source = Source{Prefix: s.prefix}
	s.came.Taken += int(n)
	s.came.Watched = min(s.came.Taken, 64)
	if g.speaks {
		s.lost += n
	}
}

// flush empties the table; conversations go on.
func (w *world) flush() {
	for _, g := range w.groups {
		for _, s := range g.sources {
			if g.class == Assured || g.oneWay {
				s.flushed += s.entries
			}
			s.entries = 0
		}
	}
}

// strict reports whether the kernel knows no connection that it did not see begin.
func strict(p Posture) bool {
	loose, set := p.Settings[tcpLoose]
	return set && loose == 0
}

// pickUp lets the kernel make the entries of flushed conversations again, as far as there is room.
func (w *world) pickUp(s *source, p Posture) {
	if strict(p) {
		return
	}
	n := min(s.flushed, max(0, float64(w.bound(p))-w.total))
	s.entries, s.flushed, w.total = s.entries+n, s.flushed-n, w.total+n
}

// comeBack lets the conversations that were evicted go on, as far as there is room.
func (w *world) comeBack(s *source, p Posture) {
	n := min(s.lost, max(0, float64(w.bound(p))-w.total))
	if n < 1 {
		return
	}
	s.entries, s.lost, w.total = s.entries+n, 0, w.total+n
	s.came.Back = s.came.Watched
}

// purge deletes what is not assured of the classes that are to be purged.
func (w *world) purge(p Posture) {
	for _, g := range w.groups {
		i := slices.IndexFunc(p.Purges, func(u Purge) bool {
			return u.Class == g.flowClass() || u.Handshakes && g.class == HalfOpen && g.to.Protocol == TCP
		})
		if g.class == Assured || i < 0 {
			continue
		}
		young := 0.0
		if g.class != Replied {
			young = 1.5 * g.flows(w.now) * p.Purges[i].Unfinished.Seconds()
		}
		for _, s := range g.sources {
			n := max(0, s.entries-young)
			if w.work.Evicted += uint64(n); g.oneWay {
				s.flushed += n
			}
			s.entries -= n
		}
	}
}
