package survey

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables"
)

// flowMatch is which packets a rule matches: all of them, and where exact is set no others. Where it is not, some of
// them. The zero value but for exact matches everything.
type flowMatch struct {
	exact         bool
	never         bool    // no packet at all
	protocol      uint8   // IP protocol number; 0 means any
	ports         []ports // destination ports; nil means any
	src, dst      netip.Prefix
	in, out       string // interfaces; empty means any
	notIn, notOut string // likewise, any but this
	local         bool   // the destination is an address of this host
	srcLocal      bool   // the source is
	tracked       bool   // no untracked packet
	states        uint32 // only packets of connections in one of these; 0 means any. exact says nothing of that
}

// and is what both match.
func (m flowMatch) and(o flowMatch) flowMatch {
	both := m
	both.exact = m.exact && o.exact
	both.never = m.never || o.never
	both.local, both.srcLocal = m.local || o.local, m.srcLocal || o.srcLocal
	both.tracked = m.tracked || o.tracked
	both.states = cmp.Or(m.states&o.states, m.states|o.states)
	both.never = both.never || m.states != 0 && o.states != 0 && m.states&o.states == 0
	both.ports = common(m.ports, o.ports)
	if m.protocol == 0 {
		both.protocol = o.protocol
	}
	both.never = both.never || m.protocol != 0 && o.protocol != 0 && m.protocol != o.protocol
	both.src = both.narrower(m.src, o.src)
	both.dst = both.narrower(m.dst, o.dst)
	both.in, both.out = both.name(m.in, o.in), both.name(m.out, o.out)
	both.notIn, both.notOut = both.other(m.notIn, o.notIn), both.other(m.notOut, o.notOut)
	both.never = both.never || both.in != "" && both.in == both.notIn || both.out != "" && both.out == both.notOut ||
		both.ports != nil && len(both.ports) == 0
	return both
}

// narrower returns the prefix that is in both; two that have nothing in common match nothing.
func (m *flowMatch) narrower(a, b netip.Prefix) netip.Prefix {
	switch {
	case !a.IsValid():
		return b
	case !b.IsValid():
		return a
	case !a.Overlaps(b):
		m.never = true
	case a.Bits() < b.Bits():
		return b
	}
	return a
}

// name returns the interface that both ask for.
func (m *flowMatch) name(a, b string) string {
	m.never = m.never || a != "" && b != "" && a != b
	if a == "" {
		return b
	}
	return a
}

// other returns an interface that neither allows. Where there are two only one is remembered.
func (m *flowMatch) other(a, b string) string {
	if a == "" {
		return b
	}
	m.exact = m.exact && (b == "" || a == b)
	return a
}

// meets says whether some packet of o, which are another host's unless it says that they are this one's, may be matched
// by m.
func (m flowMatch) meets(o flowMatch) bool { return (o.srcLocal || !m.srcLocal) && !m.and(o).never }

// verdictKind is what becomes of packets that a rule matches.
type verdictKind uint8

const (
	goesOnHere verdictKind = iota
	translated             // to one address, and to one port or the same one
	scattered              // to nobody knows which addresses or ports
	diverted               // dropped, sent to this host, or at the end of its way through the chain
	accepted               // ends it, too
	jumped
	wentTo
)

// exactRule is a rule as far as it decides what becomes of packets.
type exactRule struct {
	flowMatch
	verdict verdictKind
	chain   string         // of a jump
	to      netip.AddrPort // of a translation of the destination; port 0 keeps the port
	where   string

	refuses bool // packets go no further, for certain

	hides bool     // it translates the source
	outs  []string // if it names several interfaces by which packets leave: those
}

// flatten returns what the rules of a chain and of those that it jumps to do, in the order in which packets come to
// them. Each match is what comes to the rule at most; exact is about what its own conditions say, those of the jumps
// included, and not about the rules before it.
func (r *ruleset) flatten(at chainKey, match flowMatch, depth int, list []exactRule) []exactRule {
	for _, rule := range r.exact[at] {
		r.looks++
		if len(list) > mostSteps || depth > deepest || r.looks > mostLooks {
			return append(list, exactRule{flowMatch: match, verdict: scattered, where: at.where()})
		}
		rule.flowMatch = rule.and(match)
		switch {
		case rule.never:
		case rule.verdict == jumped || rule.verdict == wentTo:
			list = r.flatten(chainKey{at.table, rule.chain}, rule.flowMatch, depth+1, list)
			if rule.verdict == wentTo {
				list = append(list, exactRule{flowMatch: rule.flowMatch, verdict: diverted, where: rule.where})
			}
		case rule.verdict != goesOnHere:
			list = append(list, rule)
		}
	}
	return list
}

// Bounds of what is followed: how many rules, and how many looks at one, as chains may be come to by many ways. With
// more of them nothing is repeated.
const (
	mostSteps = 4096
	mostLooks = 1 << 17
)

// takesAll says whether a rule matches all packets that o does, for certain, if their state is one that it asks for.
func (s exactRule) takesAll(o flowMatch) bool {
	both := s.and(o)
	return s.exact && !both.never && (s.protocol == 0 || o.protocol != 0) && !s.local && !s.srcLocal && s.notIn == "" &&
		s.notOut == "" && both.in == o.in && both.out == o.out && slices.Equal(both.ports, o.ports) &&
		within(s.src, o.src) && within(s.dst, o.dst)
}

// within says whether all of a prefix is in another one; one that is not valid is everything of any family.
func within(outer, inner netip.Prefix) bool {
	return !outer.IsValid() || inner.IsValid() && outer.Bits() <= inner.Bits() && outer.Contains(inner.Addr())
}

// filter is a base chain of a filter.
type filter struct {
	sees  flowMatch
	steps []exactRule
	drops bool // what no rule accepts
	where string
}

// blind says whether a filter asks nothing of the connection of a packet.
func (f filter) blind() bool {
	return !slices.ContainsFunc(f.steps, func(s exactRule) bool { return s.tracked || s.states != 0 })
}

// stops names the filter that untracked packets of a flow don't pass, for certain, where they may have passed all as
// those of a connection in a state; empty where there is none.
func stops(filters []filter, flow flowMatch, state uint32) string {
	if slices.ContainsFunc(filters, func(f filter) bool { return f.stops(flow, state) }) {
		return "" // nothing of it passes anyway
	}
	for _, f := range filters {
		if f.stops(flow, ctUntracked) {
			return f.where
		}
	}
	return ""
}

// filtersAt returns the filters at some hooks, each by itself: a packet has to pass all of them.
func (r *ruleset) filtersAt(hooks ...hook) (list []filter) {
	var bases []chainKey
	for _, at := range hooks {
		bases = append(bases, r.basesAt(filterChain, at)...)
	}
	for _, base := range bases {
		if base.table.family == nftables.TableFamilyBridge {
			continue // what is routed never comes there
		}
		r.looks = 0
		sees := seenBy(base.table.family)
		list = append(list, filter{sees, r.flatten(base, sees, 0, nil), r.chains[base].drops, base.where()})
	}
	return list
}

// seenBy matches what the chains of a family's tables get to see.
func seenBy(family nftables.TableFamily) flowMatch {
	switch all := (flowMatch{exact: true}); family {
	case nftables.TableFamilyIPv4:
		all.dst = netip.PrefixFrom(netip.IPv4Unspecified(), 0)
		return all
	case nftables.TableFamilyIPv6:
		all.dst = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
		return all
	default:
		return all
	}
}

// stops says whether no packet of a flow may pass that conntrack calls by a state, for certain.
func (f filter) stops(flow flowMatch, state uint32) bool {
	if !f.sees.meets(flow) {
		return false
	}
	for _, s := range f.steps {
		switch {
		case s.tracked && state == ctUntracked || s.states != 0 && s.states&state == 0 || !s.meets(flow):
		case !s.refuses:
			return false
		case s.takesAll(flow):
			return true
		}
	}
	return f.drops
}

// stepsAt returns what the chains of one kind at a hook do, in order.
func (r *ruleset) stepsAt(kind string, at hook) []exactRule {
	var list []exactRule
	r.looks = 0
	for _, base := range r.basesAt(kind, at) {
		list = r.flatten(base, flowMatch{exact: true}, 0, list)
	}
	return list
}

// basesAt returns the base chains of one kind at a hook in the order in which packets come to them.
func (r *ruleset) basesAt(kind string, at hook) []chainKey {
	bases := slices.DeleteFunc(slices.Clone(r.bases), func(k chainKey) bool {
		return r.chains[k].kind != kind || r.chains[k].hook != at
	})
	slices.SortStableFunc(bases, func(a, b chainKey) int {
		if by := int(r.chains[a].priority) - int(r.chains[b].priority); by != 0 {
			return by
		}
		return strings.Compare(a.where(), b.where())
	})
	return bases
}
