package policy

import (
	"net/netip"
	"slices"
	"time"
)

// listing is what the ladder has to know of a step before it runs.
type listing struct {
	name         StepName
	enter, leave float64       // the default marks, in percent of pressure
	settle       time.Duration // the default of how long pressure must stay below leave
	stopsSYNs    bool          // it helps against handshakes that nobody finishes; see halfopen.go
	summary      string        // what it does, in a few words
	build        func() step
}

// catalogue lists every step in the order of the ladder. It is the only such list: names, default marks, keys of
// the configuration and labels of metrics come from it, and a test compares the tables in the docs with it.
var catalogue = []listing{
	{Grow, 50, 35, 30 * time.Second, false,
		"a larger table, within a memory budget", func() step { return &grow{} }},
	{DropInvalid, 60, 45, 10 * time.Second, false,
		"stray packets make no entries", func() step { return &dropInvalid{} }},
	{ClosedPorts, 65, 50, 10 * time.Second, false,
		"packets that no socket waits for make none either", func() step { return &closedPorts{} }},
	{Notrack, 70, 55, 10 * time.Second, true,
		"services that need no tracking go untracked, each on trial first", func() step { return &notrack{} }},
	{Synproxy, 75, 60, 10 * time.Second, true,
		"SYN cookies before services that must stay tracked, in a SYN flood", func() step { return &synproxy{} }},
	{Tighten, 80, 65, 10 * time.Second, true,
		"what is finished goes, timeouts shrink", func() step { return &tighten{} }},
	{Evict, 90, 75, 10 * time.Second, false,
		"who holds more than usual is limited; then the excess goes", func() step { return &evict{} }},
	{Admit, 95, 80, 10 * time.Second, false,
		"a flood that nobody answers gets a budget", func() step { return &admit{} }},
}

// StepNames lists every step in the order of the ladder.
func StepNames() []StepName {
	names := make([]StepName, len(catalogue))
	for i, l := range catalogue {
		names[i] = l.name
	}
	return names
}

// Summary says in a few words what a step does; it is empty where there is no such step.
func (n StepName) Summary() string {
	i := slices.IndexFunc(catalogue, func(l listing) bool { return l.name == n })
	if i < 0 {
		return ""
	}
	return catalogue[i].summary
}

// defaultSteps is the ladder without a configuration file.
func defaultSteps() []Step {
	steps := make([]Step, len(catalogue))
	for i, l := range catalogue {
		steps[i] = Step{l.name, l.enter, l.leave, l.settle}
	}
	return steps
}

// step is one measure of the ladder. The machine asks every step at every tick, engaged or not, in the order of the
// ladder. [plain] answers what a step has nothing to say to.
type step interface {
	// observe takes the tick's observation in, before anything is decided.
	observe(s situation)
	// skipped says why the step can do nothing on this host; it is empty when the step can.
	skipped(s situation) string
	// want writes into p what the step wants now, and says what changed.
	want(s situation, p *Posture) []Event
	// done counts the step's work so far, in packets or entries.
	done(o Observation) uint64
	// quiet reports whether the table would stay as calm as it is if the step were taken back now. rate is
	// how fast done moves, per second.
	quiet(s situation, rate float64) bool
	// brought puts into words what came of the step since it was engaged: done is its work since then, never 0.
	brought(s situation, done uint64, was outcome) string
	// status says what the step is doing now; it is empty when the marks say enough.
	status(s situation) string
}

// plain is a step that can always work and has no state.
type plain struct{}

func (plain) observe(situation)             {}
func (plain) skipped(situation) string      { return "" }
func (plain) quiet(situation, float64) bool { return true }
func (plain) status(situation) string       { return "" }

// Three things that only some steps can do. The machine passes them on to those that can.
type (
	// forgetter drops its memory of the sources inside a prefix, because an operator released them.
	forgetter interface{ forget(prefix netip.Prefix) }
	// explainer says how the sources inside a prefix stand with it.
	explainer interface {
		explain(prefix netip.Prefix, s situation, say func(format string, args ...any))
	}
	// cookies says how a forwarded service stands with SYN cookies; empty for anything else.
	cookies interface {
		cookies(one Selector, s situation) string
	}
)

// situation is all that a step may look at.
type situation struct {
	Observation
	reading
	cfg      *Config
	ordinary *OrdinaryDay
	shared   *shared
	released []netip.Prefix // by the operator: as good as on the allowlist
	pinned   bool           // an operator's word decides the level
	before   Posture        // what was wanted at the last tick

	// Of the step that is asked:
	marks   Step // zero when the configuration has the step off
	engaged bool
	works   bool // it is engaged, and nothing on this host speaks against it
}

// listed reports whether the configuration has the step that is asked.
func (s situation) listed() bool { return s.marks.Name != "" }

// oneSided reports whether TCP without answers is conversations here; see [OrdinaryDay].
func (s situation) oneSided() bool { return s.ordinary.oneSided(s.cfg.OrdinaryInvalid) }

// ordinaryClass reports whether a class has no answers on an ordinary day: nobody can tell a flood of it by that.
func (s situation) ordinaryClass(class FlowClass) bool {
	return s.ordinary.Unanswered(class) || class.Protocol == tcp && s.oneSided()
}

// shared is all that the steps know of each other, and what they ask of the loop. Each field names the step that
// writes it; it stays as it was written until that step is asked again.
type shared struct {
	untrackable []Selector   // by notrack: services that may go untracked, freed or not
	adopting    bool         // by notrack: connections are being given entries
	proxied     []Selector   // by synproxy: services whose handshakes it answers, or is about to
	crowded     bool         // by evict: the table is fuller than half-way from its target to its leave mark
	zoned       bool         // by the machine: there are entries in several zones, or may be
	suspects    suspects     // by evict: whose the transient entries are
	purged      []FlowClass  // by evict: classes of this host's own services that it purges whenever the table is crowded
	loose       looseArbiter // by those that need tcp_loose one way or the other
	asks        asks         // by all of them
}

// asks is what steps want of the loop until the next tick.
type asks struct {
	fast    bool // a short tick: something is to be decided soon
	scan    Scan // at least this scan
	hurry   bool // the scan matters more than the CPU it takes
	compare bool // it is to be compared with the first of this attack
}

// wantScan asks for a scan, unless somebody asked for a better one.
func (a *asks) wantScan(scan Scan) { a.scan = max(a.scan, scan) }

// begin forgets what was asked for at the last tick.
func (h *shared) begin() { h.asks, h.loose.strict = asks{}, false }

// mayGo reports whether a service of which s is a part may go untracked.
func (h *shared) mayGo(s Selector) bool {
	return slices.ContainsFunc(h.untrackable, func(safe Selector) bool { return safe == s || safe.PartlyCovers(s) })
}
