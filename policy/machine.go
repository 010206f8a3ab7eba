package policy

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"time"
)

// Scan is what the machine wants to know about the table's entries.
type Scan uint8

// The kinds of scan.
const (
	NoScan     Scan = iota
	LearnScan       // who is here on an ordinary day: in no hurry at all
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
	Compare       bool          // it is the second of an attack, which tells who opens flows: it follows the first at once
	Growing       bool          // the table grows faster than on an ordinary day
	Steady        bool          // it has stood still for long, so that a scan teaches something whatever the level
	Fill          float64       // percent
	Pressure      float64       // percent
	Rate          float64       // net new entries per second
	SecondsToFull *float64      // nil while the table is not filling
}

// Machine decides. It is not safe for concurrent use.
type Machine struct {
	cfg      Config
	gauge    gauge
	ordinary OrdinaryDay
	steady   steady
	ladder   ladder
	steps    []*worker // every step in the order of the ladder, those that the configuration has off too
	shared   shared
	operator operator
	census   *Census   // the newest
	last     situation // of the last tick
	decision Decision  // of the last tick
}

// New returns a machine at level 0. c must be valid.
func New(c Config) *Machine { return &Machine{cfg: c, ladder: newLadder(c.Steps), steps: newWorkers()} }

// Reconfigure gives the machine another configuration, which must be valid. The steps that are
// engaged stay engaged as far as the new ladder has them; nothing that was learnt is forgotten.
func (m *Machine) Reconfigure(c Config) { m.cfg, m.ladder = c, m.ladder.rebuilt(c.Steps) }

// SetOverride pins, caps or freezes the level until its end; nil gives it back.
func (m *Machine) SetOverride(ov *Override) { m.operator.override = ov }

// Say takes an operator's word on one prefix; a later word on the same prefix replaces it.
func (m *Machine) Say(word Word) {
	m.operator.say(word)
	if !word.Release {
		return
	}
	for _, w := range m.steps {
		if f, ok := w.step.(forgetter); ok {
			f.forget(word.Prefix)
		}
	}
}

// Recall gives the machine an ordinary day that an earlier one learnt.
func (m *Machine) Recall(d OrdinaryDay) { m.ordinary = d }

// OrdinaryDay returns what was learnt. It is the machine's own: whoever keeps it must not change it.
func (m *Machine) OrdinaryDay() *OrdinaryDay { return &m.ordinary }

// Override returns the override in force, or nil.
func (m *Machine) Override() *Override { return m.operator.override }

// Words returns the operator's words in force.
func (m *Machine) Words() []Word { return slices.Clone(m.operator.words) }

// Tick takes one observation in and returns what is wanted now.
func (m *Machine) Tick(o Observation) Decision {
	events := m.operator.expire(o.Time)
	s := m.observe(o)
	events = append(events, m.climb(s)...)
	posture, more := m.posture(s)
	events = append(events, more...)
	events = append(events, m.report(s)...)
	stamp(events, s)
	m.last = s
	m.decision = Decision{
		Posture: posture, Events: events, Next: m.next(s, posture), Scan: m.scan(s),
		Hurry: m.shared.asks.hurry, Compare: m.shared.asks.compare,
		Growing: s.growing(), Steady: m.ordinary.Steady && m.steady.on(o.Time),
		Fill: s.fill, Pressure: s.pressure, Rate: s.rate,
		SecondsToFull: finite(s.secondsToFull(o.Capacity)),
	}
	return m.decision
}

// observe takes an observation in and returns the situation.
func (m *Machine) observe(o Observation) situation {
	if m.shared.adopting {
		m.gauge.past = nil // what ctguard itself puts into the table is no growth to look ahead from
	}
	if o.Census != nil {
		m.census = o.Census
	}
	m.shared.zoned = o.Zones || o.Census != nil && o.Census.Zoned > 0 || m.shared.zoned && m.ladder.level > 0
	s := m.situation(o, m.gauge.read(o, m.cfg.Lookahead))
	if m.emptied(o) {
		m.shared.loose.pickUp(o.Time, "most of the table went at once")
	}
	m.shared.loose.watch(s)
	for _, w := range m.steps {
		w.step.observe(m.tell(w, s))
		w.pace.update(o.Time, w.step.done(o))
	}
	m.raiseForHalfOpen(&s)
	m.ordinary.observe(o, m.learns(s))
	m.ladder.observe(o.Time, s.pressure, func(name StepName) (skipped, quiet bool) {
		w := m.worker(name)
		s := m.tell(w, s)
		return w.skipped(s) != "", w.step.quiet(s, w.pace.Rate)
	})
	return s
}

// emptied reports whether most of the table went at once, and not by ctguard: somebody flushed it, or this host took
// an address over from another one.
func (m *Machine) emptied(o Observation) bool {
	fell := m.last.Count - o.Count
	return fell > m.last.Count/2 && 100*fell > o.Capacity && fell > 2*int(since(o.Work.Evicted, m.last.Work.Evicted))
}

// situation puts together what steps may look at; [Machine.tell] adds what is each step's own.
func (m *Machine) situation(o Observation, r reading) situation {
	return situation{
		Observation: o, reading: r, cfg: &m.cfg, ordinary: &m.ordinary, shared: &m.shared,
		released: m.operator.released(), pinned: m.operator.pinned(), before: m.decision.Posture,
	}
}

// worker returns the step called name.
func (m *Machine) worker(name StepName) *worker {
	return m.steps[slices.IndexFunc(m.steps, func(w *worker) bool { return w.name == name })]
}

// tell returns the situation as one step is told it.
func (m *Machine) tell(w *worker, s situation) situation {
	s.marks, _ = m.cfg.Step(w.name)
	s.engaged = m.ladder.engaged(w.name)
	return s
}

// climb moves the level and says why.
func (m *Machine) climb(s situation) []Event {
	wanted, reason := m.ladder.next(s.Time, s.reading)
	override, from := m.operator.override, m.ladder.level
	level := min(max(override.apply(wanted, from), 0), len(m.ladder.rungs))
	if level == from {
		return nil
	}
	if level != wanted || reason == "" {
		reason = override.String()
	}
	if shape := m.shape(s.Time); level > from && shape != "" {
		reason += "; " + shape
	}
	m.ladder.set(s.Time, level)
	for i := from; i < level; i++ {
		m.worker(m.ladder.rungs[i].Name).begin(s)
	}
	return []Event{{Kind: LevelEvent, From: &from, To: &level, Reason: reason}}
}

// posture asks every step what it wants and returns the whole wanted state.
func (m *Machine) posture(s situation) (Posture, []Event) {
	p := Posture{Level: m.ladder.level, Settings: make(map[string]int), Reject: m.cfg.Reject,
		OneSided: s.oneSided()}
	m.shared.begin()
	var events []Event
	for _, w := range m.steps {
		s := m.tell(w, s)
		s.works = s.engaged && w.skipped(s) == ""
		events = append(events, w.step.want(s, &p)...)
	}
	events = append(events, m.shared.loose.decide(s.Observation, &p)...)
	p.Limits = m.operator.limits(p.Limits)
	p.Allow = slices.Concat(s.Allow, s.released)
	return p, events
}

// next returns when to look again: a tenth of the time that is left until the table is full, within
// the configured ticks. The shortest while the table grows or is purged, or a step asks for it. A table that is
// full, but grows no more, has every step engaged already.
func (m *Machine) next(s situation, p Posture) time.Duration {
	if s.pressure >= m.ladder.lowest() && s.growing() || len(p.Purges) > 0 || m.shared.asks.fast {
		return m.cfg.Pressed
	}
	left := s.secondsToFull(s.Capacity) / 10 * float64(time.Second)
	return time.Duration(min(max(left, float64(m.cfg.Pressed)), float64(m.cfg.Calm)))
}

// scan says which scan the next observations should bring: at least a sample while anything is engaged or about to be,
// and in calm one to learn from.
func (m *Machine) scan(s situation) Scan {
	if m.ladder.level > 0 || s.pressure >= m.ladder.lowest() {
		return max(m.shared.asks.scan, SampleScan)
	}
	return max(m.shared.asks.scan, LearnScan)
}

// stamp writes the numbers of this tick into its events.
func stamp(events []Event, s situation) {
	for i := range events {
		e := &events[i]
		e.Time, e.Fill, e.Pressure, e.Rate = s.Time, s.fill, s.pressure, s.rate
		e.SecondsToFull = finite(s.secondsToFull(s.Capacity))
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
	text := fmt.Sprintf("%d %% unreplied, %d %% half-open, %d %% assured",
		percent(c.Classes[Unreplied]), percent(c.Classes[HalfOpen]), percent(c.Classes[Assured]))
	if len(c.Sources) > 0 {
		top := slices.MaxFunc(c.Sources, func(a, b Holding) int { return cmp.Compare(a.Entries, b.Entries) })
		text += fmt.Sprintf("; %s holds %d %%, the most of %d sources", top.Source(), percent(top.Entries), c.Distinct)
	}
	return text
}
