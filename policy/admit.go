package policy

import (
	"cmp"
	"fmt"
	"slices"
)

// Admit is the step that gives the new flows of a flood a budget.
const Admit StepName = "admit"

// admit finds the class of a flood that nobody answers, and gives its new flows a budget. Where a class has
// answers it goes free: among its sources are those who are to be served, and the kernel's early drop, which takes
// unanswered entries, serves more of them than a budget that all of the flood's sources share.
type admit struct {
	plain
	budgets map[FlowClass]*budget
	grace
}

type budget struct {
	Budget
	life float64 // seconds that an unanswered entry of the class stays in the table
}

// Parts of the search.
const (
	answeredPart = 0.01 // part of a class's entries that must be answered for the class to go free
	budgetPart   = 0.05 // part of the capacity that a class's budget may fill
)

// unansweredLife is how long an unanswered entry stays, by IP protocol: the setting and its default in
// seconds (net/netfilter/nf_conntrack_proto_*.c). Everything else is generic.
var unansweredLife = map[uint8]struct {
	setting string
	seconds int
}{
	1:   {"nf_conntrack_icmp_timeout", 30},
	tcp: {"nf_conntrack_tcp_timeout_syn_sent", 120},
	udp: {"nf_conntrack_udp_timeout", udpTimeout},
	47:  {"nf_conntrack_gre_timeout", 30},
	58:  {"nf_conntrack_icmpv6_timeout", 30},
}

// want judges a census, if there is a new one, and wants the budgets in a stable order. What a class left in a
// crowded table is purged: nobody answers it, so it would stay for minutes.
func (a *admit) want(s situation, p *Posture) []Event {
	if !s.works {
		*a = admit{}
		return nil
	}
	var events []Event
	if s.Census != nil {
		events = a.judge(s)
	}
	for _, b := range a.budgets {
		p.Budgets = append(p.Budgets, b.Budget)
	}
	slices.SortFunc(p.Budgets, func(x, y Budget) int { return x.Class.compare(y.Class) })
	if s.shared.crowded {
		for _, b := range p.Budgets {
			p.purge(Purge{Class: b.Class, Unfinished: unfinishedForInNeed})
		}
	}
	return events
}

// judge gives budgets to classes that hold a large part of the table, or are about to, and have no answers, and takes
// them from classes that have some by now.
func (a *admit) judge(s situation) []Event {
	var events []Event
	tell := func(class FlowClass, format string, args ...any) {
		reason := class.String() + " " + fmt.Sprintf(format, args...)
		events = append(events, Event{Kind: StepEvent, Step: Admit, Reason: reason})
	}
	for _, f := range classes(s.Census) {
		share := s.Census.shareAhead(f.entries, s)
		large := f.entries >= enoughSeen && share >= s.cfg.ClassShare
		answered := float64(f.replied) > answeredPart*float64(f.entries)
		switch b := a.budgets[f.class]; {
		case b != nil && answered:
			delete(a.budgets, f.class)
			tell(f.class, "goes free: %d of %d entries seen are answered", f.replied, f.entries)
		case b == nil && slices.Contains(s.shared.purged, f.class):
			// This host's own service. What a purge leaves of it was born a moment ago, and is not answered yet.
		case b == nil && !answered && !s.ordinaryClass(f.class) && large && !a.leaves(f, s.shared.suspects, s):
			if a.budgets == nil {
				a.budgets = make(map[FlowClass]*budget)
			}
			b = newBudget(f.class, s.Observation)
			a.budgets[f.class] = b
			tell(f.class, "may open %d flows a second: its flows hold %.0f %% of the capacity, or are about to, "+
				"and %d of %d seen are answered", b.Rate, share, f.replied, f.entries)
		}
	}
	return events
}

// newBudget returns the budget of a class.
func newBudget(class FlowClass, o Observation) *budget {
	life := o.Admin["nf_conntrack_generic_timeout"]
	if of, known := unansweredLife[class.Protocol]; known {
		life = cmp.Or(o.Admin[of.setting], of.seconds)
	}
	b := &budget{life: float64(cmp.Or(life, 600))}
	b.Budget = Budget{class, max(1, int(budgetPart*float64(o.Capacity)/b.life))}
	return b
}

func (*admit) done(o Observation) uint64 { return o.Work.BudgetDropped }

// quiet reports whether the table has room for what the budgets keep out.
func (a *admit) quiet(s situation, rate float64) bool {
	life := 0.0
	for _, b := range a.budgets {
		life = max(life, b.life)
	}
	return s.roomFor(rate * life)
}

func (*admit) brought(s situation, done uint64, _ outcome) string {
	return fmt.Sprintf("dropped %d packets above the budgets of %d classes", done, len(s.before.Budgets))
}

func (*admit) status(s situation) string {
	return fmt.Sprintf("%d classes on a budget", len(s.before.Budgets))
}
