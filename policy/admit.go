package policy

import (
	"cmp"
	"fmt"
	"slices"
)

// admitter finds the class of a flood that nobody answers, and gives its new flows a budget. Where a class has answers it goes free: among its sources are those who are to be served,
// and the kernel's early drop, which takes unanswered entries, serves more of them than a budget
// that all of the flood's sources share.
type admitter struct {
	budgets map[FlowClass]*budget
	patience
}

type budget struct {
	Budget
	life float64 // seconds that an unanswered entry of the class stays in the table
}

// Parts of the search.
const (
	answeredPart = 0.01 // part of a class's entries that must be answered for the class to go free
	enoughSeen   = 200  // entries of a class that a sample must hold for its answers to be judged
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
	udp: {"nf_conntrack_udp_timeout", 30},
	47:  {"nf_conntrack_gre_timeout", 30},
	58:  {"nf_conntrack_icmpv6_timeout", 30},
}

// update judges a census, if there is a new one, and returns the budgets in a stable order. whose says
// whose the passing entries are by that census; see [patience].
func (a *admitter) update(o Observation, r reading, on bool, whose blame, c Config) ([]Budget, []Event) {
	if !on {
		*a = admitter{}
		return nil, nil
	}
	var events []Event
	if o.Census != nil {
		events = a.judge(o, r, whose, c)
	}
	list := make([]Budget, 0, len(a.budgets))
	for _, b := range a.budgets {
		list = append(list, b.Budget)
	}
	slices.SortFunc(list, func(x, y Budget) int { return x.Class.compare(y.Class) })
	return list, events
}

// judge gives budgets to classes that hold a large part of the table, or are about to, and have no answers, and takes
// them from classes that have some by now.
func (a *admitter) judge(o Observation, r reading, whose blame, c Config) []Event {
	var events []Event
	tell := func(class FlowClass, format string, args ...any) {
		events = append(events, Event{Kind: StepEvent, Step: Admit, Reason: class.String() + " " + fmt.Sprintf(format, args...)})
	}
	for _, f := range classes(o.Census) {
		share := o.Census.shareAhead(f.entries, o, r)
		answered := float64(f.replied) > answeredPart*float64(f.entries)
		switch b := a.budgets[f.class]; {
		case b != nil && answered:
			delete(a.budgets, f.class)
			tell(f.class, "goes free: %d of %d entries seen are answered", f.replied, f.entries)
		case b == nil && !answered && f.entries >= enoughSeen && share >= c.ClassShare && !a.leaves(f, whose, o, r):
			if a.budgets == nil {
				a.budgets = make(map[FlowClass]*budget)
			}
			b = newBudget(f.class, o)
			a.budgets[f.class] = b
			tell(f.class, "may open %d flows a second: its flows hold %.0f %% of the capacity, or are about to, and %d of %d seen are answered",
				b.Rate, share, f.replied, f.entries)
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

// found is one class of a census.
type found struct {
	class            FlowClass
	entries, replied int // of those that the scan saw
}

// classes returns the classes of a census: TCP and UDP by destination port, other protocols whole.
func classes(c *Census) []found {
	var list []found
	for _, p := range c.Ports {
		list = append(list, found{FlowClass{p.Protocol, p.Port}, p.Entries, p.Replied})
	}
	for protocol, n := range c.Protocols {
		if protocol != tcp && protocol != udp {
			list = append(list, found{FlowClass{Protocol: protocol}, n, c.ProtocolsReplied[protocol]})
		}
	}
	slices.SortFunc(list, func(x, y found) int { return x.class.compare(y.class) })
	return list
}

// quiet reports whether the table has room for what the budgets keep out, at rate packets a second.
func (a *admitter) quiet(o Observation, step Step, rate float64) bool {
	life := 0.0
	for _, b := range a.budgets {
		life = max(life, b.life)
	}
	return roomBelow(step, o, rate*life)
}

// compare orders classes for reports.
func (c FlowClass) compare(d FlowClass) int {
	return cmp.Or(cmp.Compare(c.Protocol, d.Protocol), cmp.Compare(c.Port, d.Port))
}

// String returns the class as reports write it.
func (c FlowClass) String() string {
	switch c.Protocol {
	case tcp:
		return fmt.Sprintf("tcp/%d", c.Port)
	case udp:
		return fmt.Sprintf("udp/%d", c.Port)
	}
	return fmt.Sprintf("protocol %d", c.Protocol)
}
