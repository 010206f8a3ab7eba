package policy

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"slices"
	"time"
)

// Names of settings that decisions depend on.
const (
	tcpLoose   = "nf_conntrack_tcp_loose"
	tcpLiberal = "nf_conntrack_tcp_be_liberal"
)

// Scan is what the machine wants to know about the table's entries.
type Scan uint8

// The kinds of scan.
const (
	NoScan     Scan = iota
	SampleScan      // who fills the table, roughly
	WholeScan       // every entry, for a fair share to the entry
)

// Decision is the outcome of one tick.
type Decision struct {
	Posture       Posture
	Events        []Event
	Next          time.Duration // until the next tick
	Scan          Scan          // what the next observations should bring
	Hurry         bool          // the scan matters more than the CPU it takes
	Growing       bool          // the table grows faster than on an ordinary day
	Fill          float64       // percent
	Pressure      float64       // percent
	Rate          float64       // net new entries per second
	SecondsToFull *float64      // nil while the table is not filling
}

// Machine decides. It is not safe for concurrent use.
type Machine struct {
	cfg        Config
	gauge      gauge
	ladder     ladder
	untracker  untracker
	proxier    proxier
	tightener  tightener
	offenders  offenders
	admitter   admitter
	purger     purger
	purging    bool // something is to be purged now
	calm       calm
	work       map[StepName]*pace
	started    map[StepName]*outcome
	override   *Override
	manual     []Manual
	lane       bool    // the management lane is open
	handshakes pace    // unfinished ones that synproxy answered
	synFlood   bool    // handshakes under way hold too much of the table
	halfOpen   float64 // the percentage of the capacity that they hold
	futile     bool    // the top step has just turned out to bring nothing
	census     *Census // the newest
	last       Observation
	decision   Decision
}

// New returns a machine at level 0. c must be valid.
func New(c Config) *Machine {
	m := &Machine{cfg: c, ladder: newLadder(c.Steps), work: make(map[StepName]*pace), started: make(map[StepName]*outcome)}
	for _, name := range StepNames() {
		m.work[name] = &pace{}
	}
	return m
}

// Reconfigure gives the machine another configuration, which must be valid. The steps that are
// engaged stay engaged as far as the new ladder has them; nothing that was learnt is forgotten.
func (m *Machine) Reconfigure(c Config) {
	old := m.ladder
	m.cfg, m.ladder = c, newLadder(c.Steps)
	for i := range m.ladder.rungs {
		for _, r := range old.rungs {
			if r.Name == m.ladder.rungs[i].Name {
				r.Step = m.ladder.rungs[i].Step
				m.ladder.rungs[i] = r
			}
		}
		if !m.ladder.rungs[i].engaged.IsZero() && m.ladder.level == i {
			m.ladder.level = i + 1
		}
	}
	for i := m.ladder.level; i < len(m.ladder.rungs); i++ {
		m.ladder.rungs[i].engaged = time.Time{}
	}
	m.ladder.changed = old.changed
}

// SetOverride pins, caps or freezes the level until its end; nil gives it back.
func (m *Machine) SetOverride(ov *Override) { m.override = ov }

// SetManual takes an operator's word on one prefix; a later word on the same prefix replaces it.
func (m *Machine) SetManual(word Manual) {
	m.manual = slices.DeleteFunc(m.manual, func(o Manual) bool { return o.Prefix == word.Prefix })
	m.manual = append(m.manual, word)
	if word.Release {
		m.offenders.forget(word.Prefix)
	}
}

// Override returns the override in force, or nil.
func (m *Machine) Override() *Override { return m.override }

// Manual returns the operator's words in force.
func (m *Machine) Manual() []Manual { return slices.Clone(m.manual) }

// Tick takes one observation in and returns what is wanted now.
func (m *Machine) Tick(o Observation) Decision {
	if m.untracker.adopting() {
		m.gauge.past = nil // what ctguard itself puts into the table is no growth to look ahead from
	}
	r := m.gauge.read(o, m.cfg.Lookahead, m.ladder.lowest())
	if o.Census != nil {
		m.census = o.Census
	}
	r = m.withHalfOpen(o, r)
	m.calm.observe(o, m.ladder.level == 0 && !r.growing() && r.pressure < m.ladder.lowestEnter())
	m.ladder.observe(o.Time, r.pressure, m.quiet(o), func(name StepName) bool { return m.skipped(name, o) != "" })

	var events []Event
	events = append(events, m.expire(o.Time)...)
	events = append(events, m.climb(o, r)...)
	posture, more := m.posture(o, r)
	m.purging = len(posture.Purges) > 0
	events = append(events, more...)
	events = append(events, m.report(o, r)...)
	m.stamp(events, o, r)
	m.last = o
	m.decision = Decision{
		Posture: posture, Events: events, Next: m.next(o, r), Scan: m.scan(r), Hurry: m.hurry(r), Growing: r.growing(),
		Fill: r.fill, Pressure: r.pressure, Rate: r.rate, SecondsToFull: finite(r.secondsToFull(o.Capacity)),
	}
	return m.decision
}

// expire ends overrides and manual words whose time has come.
func (m *Machine) expire(now time.Time) []Event {
	m.manual = slices.DeleteFunc(m.manual, func(w Manual) bool { return !now.Before(w.Until) })
	if m.override == nil || now.Before(m.override.Until) {
		return nil
	}
	ended := Event{Kind: OverrideEvent, Reason: fmt.Sprintf("%s: its time is over", m.override)}
	m.override = nil
	return []Event{ended}
}

// climb moves the level and says why.
func (m *Machine) climb(o Observation, r reading) []Event {
	wanted, reason := m.ladder.wanted(o.Time, r.pressure)
	if wanted <= m.ladder.level && m.futile && r.growing() && m.ladder.level > 0 {
		top := m.ladder.rungs[m.ladder.level-1]
		if r.pressure >= top.Enter && m.ladder.above() > m.ladder.level {
			wanted, reason = m.ladder.above(), fmt.Sprintf("%s brought nothing and pressure stays at %.0f %%", top.Name, r.pressure)
		}
	}
	m.futile = false
	level := min(max(m.override.apply(wanted, m.ladder.level), 0), len(m.ladder.rungs))
	from := m.ladder.level
	if level == from {
		return nil
	}
	if level != wanted || reason == "" {
		reason = m.override.String()
	}
	if shape := m.shape(o.Time); level > from && shape != "" {
		reason += "; " + shape
	}
	m.ladder.set(o.Time, level)
	for i := from; i < level; i++ {
		m.started[m.ladder.rungs[i].Name] = m.begin(m.ladder.rungs[i].Name, o, r)
	}
	return []Event{{Kind: LevelEvent, From: &from, To: &level, Reason: reason}}
}

// engaged returns the step called name, and whether it is engaged.
func (m *Machine) engaged(name StepName) (Step, bool) {
	for _, r := range m.ladder.rungs[:m.ladder.level] {
		if r.Name == name {
			return r.Step, true
		}
	}
	return Step{}, false
}

// works is engaged, for a step that can do something on this host.
func (m *Machine) works(name StepName, o Observation) (Step, bool) {
	step, on := m.engaged(name)
	return step, on && m.skipped(name, o) == ""
}

// burstSeconds is how many seconds' worth of new flows a limited source may open at once: a browser
// opens several connections for one page.
const burstSeconds = 5

// posture builds the whole desired state for the level.
func (m *Machine) posture(o Observation, r reading) (Posture, []Event) {
	p := Posture{Level: m.ladder.level, Settings: make(map[string]int), Reject: m.cfg.Reject}
	_, notrack := m.engaged(NotrackStep)
	selectors, events := m.untracker.update(o, m.cfg, m.candidates(o, r), func(s Selector) bool {
		return notrack && slices.Contains(o.Services, s) || m.lane && slices.Contains(o.Lane, s)
	})
	p.Notrack, p.Adopt = selectors, m.untracker.adopt()
	if _, on := m.works(Grow, o); on {
		p.Settings = grown(o)
	}
	_, p.ClosedPorts = m.works(ClosedPorts, o)
	events = append(events, m.strict(&p, o)...)
	if step, on := m.works(Tighten, o); on {
		maps.Copy(p.Settings, m.tightener.settings(o.Time, r.pressure, step, m.cfg, o.Admin))
	}
	if _, on := m.engaged(Evict); !on {
		m.offenders.release(o.Time)
	} else if o.Census != nil {
		caps, held := m.offenders.judge(m.withReleased(o), m.cfg)
		m.offenders.found = len(caps) > 0 || m.offenders.found && r.fill > m.cfg.Target
		p.Caps, events = caps, append(events, held...)
	}
	_, admit := m.works(Admit, o)
	budgets, more := m.admitter.update(o, r, admit, m.offenders.blame, m.cfg)
	p.Budgets, events = budgets, append(events, more...)
	_, evict := m.works(Evict, o)
	purges, purged := m.purger.update(o, r, evict, m.crowded(r), m.offenders.blame, m.cfg)
	p.Purges, events = purges, append(events, purged...)
	if m.crowded(r) {
		p.Purges = p.withLeftovers()
	}
	p.Limits = m.limits(o)
	p.LimitRate = max(1, m.offenders.rate)
	p.LimitBurst = burstSeconds * p.LimitRate
	return p, events
}

// The fill in percent at which the management lane opens, whatever the level, and below which it closes:
// while it is open, TCP can't be held to what conntrack knows.
const (
	laneFill  = 90
	laneLeave = 75
)

// candidates returns what may go untracked now: nothing at level 0; above it the services, if
// notrack is on the ladder, and the management lane while the table is about to be full.
func (m *Machine) candidates(o Observation, r reading) []Selector {
	if m.ladder.level == 0 {
		m.lane = false
		return nil
	}
	m.lane = r.fill >= laneFill || m.lane && r.fill >= laneLeave
	var all []Selector
	if _, listed := m.cfg.Step(NotrackStep); listed {
		all = slices.Clone(o.Services)
	}
	if m.lane {
		for _, s := range o.Lane {
			// Where the whole service may go untracked the lane needs nothing of its own.
			whole := Selector{Protocol: s.Protocol, Port: s.Port}
			if !slices.Contains(all, s) && (!slices.Contains(all, whole) || m.untracker.refusal(whole, o) != "") {
				all = append(all, s)
			}
		}
	}
	return all
}

// withReleased returns o with the operator's released prefixes on its allowlist.
func (m *Machine) withReleased(o Observation) Observation {
	for _, w := range m.manual {
		if w.Release {
			o.Allow = append(slices.Clone(o.Allow), w.Prefix)
		}
	}
	return o
}

// limits returns the offenders' limits and the operator's own.
func (m *Machine) limits(o Observation) []Limit {
	limits := m.offenders.limits(o.Time, m.cfg)
	for _, w := range m.manual {
		if !w.Release {
			limits = slices.DeleteFunc(limits, func(l Limit) bool { return l.Prefix == w.Prefix })
			limits = append(limits, Limit{w.Prefix, LimitNew, w.Until, "by the operator: " + w.Reason})
		}
	}
	return limits
}

// next returns when to look again: a tenth of the time that is left until the table is full, within
// the configured ticks.
func (m *Machine) next(o Observation, r reading) time.Duration {
	if m.pressed(r) {
		return m.cfg.Pressed
	}
	left := r.secondsToFull(o.Capacity) / 10 * float64(time.Second)
	return time.Duration(min(max(left, float64(m.cfg.Pressed)), float64(m.cfg.Calm)))
}

// pressed reports whether the next tick may have something to decide: the table grows or is purged, or
// something is on trial. A table that is full, but grows no more, has every step engaged already.
func (m *Machine) pressed(r reading) bool {
	return r.pressure >= m.ladder.lowest() && r.growing() || m.purging ||
		m.untracker.moving(m.last.Time, m.cfg) || m.proxier.young(m.last.Time)
}

// scan says which scan the next observations should bring. Who is heavy is worth a whole scan in the
// upper half of the way from the fair share's target to evict's leave mark, and all the way down to
// the target while somebody has just been found above a share; below that, and while a flood is purged that
// comes from everywhere, only the shape of the table is of interest.
func (m *Machine) scan(r reading) Scan {
	_, evict := m.engaged(Evict)
	if evict && len(m.purger.classes) == 0 && (m.crowded(r) || m.offenders.found && r.fill > m.cfg.Target) {
		return WholeScan
	}
	if m.ladder.level > 0 || r.pressure >= m.ladder.lowest() {
		return SampleScan
	}
	return NoScan
}

// crowded reports whether the table is fuller than half-way from the fair share's target to evict's
// leave mark.
func (m *Machine) crowded(r reading) bool {
	step, on := m.cfg.Step(Evict)
	return on && r.fill > (m.cfg.Target+step.Leave)/2
}

// hurry reports whether the table is crowded, pressure is at the mark of evict and the last scan, if
// there was one, found somebody above a fair share.
func (m *Machine) hurry(r reading) bool {
	step, on := m.engaged(Evict)
	return on && m.crowded(r) && r.pressure >= step.Enter && (m.offenders.last == nil || m.offenders.found)
}

// stamp writes the numbers of this tick into its events.
func (m *Machine) stamp(events []Event, o Observation, r reading) {
	for i := range events {
		e := &events[i]
		e.Time, e.Fill, e.Pressure, e.Rate = o.Time, r.fill, r.pressure, r.rate
		e.SecondsToFull = finite(r.secondsToFull(o.Capacity))
	}
}

// finite returns x, or nil where it is infinite: JSON has no word for that.
func finite(x float64) *float64 {
	if math.IsInf(x, 0) {
		return nil
	}
	return &x
}

// shapeFor is how long a census says what the table consists of: a flood changes it in seconds.
const shapeFor = 5 * time.Second

// shape says what the table consists of, from a census that is not too old.
func (m *Machine) shape(now time.Time) string {
	c := m.census
	if c == nil || c.Seen == 0 || now.Sub(c.Time) > shapeFor {
		return ""
	}
	percent := func(n int) int { return 100 * n / c.Seen }
	text := fmt.Sprintf("%d %% unreplied, %d %% half-open, %d %% assured", percent(c.Classes[Unreplied]), percent(c.Classes[HalfOpen]), percent(c.Classes[Assured]))
	if len(c.Sources) > 0 {
		top := slices.MaxFunc(c.Sources, func(a, b Holding) int { return cmp.Compare(a.Entries, b.Entries) })
		text += fmt.Sprintf("; %s holds %d %%, the most of %d sources", top.Prefix, percent(top.Entries), c.Distinct)
	}
	return text
}
