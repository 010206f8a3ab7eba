package nft

import (
	"strings"

	"ctguard/policy"
)

// special is a selector that is no plain service: it has rules and named counters of its own.
type special struct {
	selector  policy.Selector
	untracked bool
}

// counter returns the name of one of s's counters. A name is made of what nft takes unquoted:
// letters, digits and _./- .
func (s special) counter(kind string) string {
	return kind + "_" + strings.NewReplacer(" with ", "_", ":", "-").Replace(
		strings.Replace(s.selector.String(), "/", "_", 1))
}

// counters returns the names of all of s's counters.
func (s special) counters() []string {
	kinds := []string{requests, delivered, replies, sent}
	if s.selector.Protocol == policy.TCP {
		kinds = append(kinds, opened)
	}
	names := make([]string, len(kinds))
	for i, kind := range kinds {
		names[i] = s.counter(kind)
	}
	return names
}

// incoming returns what matches requests, each list one rule's clauses. The caller has seen to it
// that the packet is for this host, except for groups.
func (s special) incoming() [][]clause { return s.matches(source, destination, echoRequest) }

// outgoing returns what matches the answers.
func (s special) outgoing() [][]clause { return s.matches(destination, source, echoReply) }

// matches returns the clauses of either direction: remote is the side of the other host, local this
// host's.
func (s special) matches(remote, local side, echo [2]icmpKind) [][]clause {
	if s.selector.Group {
		return [][]clause{{going(toMulticast)}, {going(toBroadcast)}}
	}
	var from []clause
	if p := s.selector.Remote; p.IsValid() {
		from = []clause{remote.in(plain(p))}
	}
	if s.selector.Protocol != policy.ICMP {
		return [][]clause{append(from, local.is(s.selector.Protocol, s.selector.Port))}
	}
	var list [][]clause
	for _, kind := range echo {
		if p := s.selector.Remote; !p.IsValid() || plain(p).Addr().Is6() == kind.v6 {
			list = append(list, append(from[:len(from):len(from)], kind.clause()))
		}
	}
	return list
}

// rules makes one rule of each match.
func rules(matches [][]clause, then ...clause) []rule {
	list := make([]rule, 0, len(matches))
	for _, m := range matches {
		list = append(list, newRule(append(m[:len(m):len(m)], then...)...))
	}
	return list
}

// counting returns rules that count into one of s's counters and, if asked, leave the packet untracked.
func (s special) counting(kind string, matches [][]clause, untrack bool) []rule {
	if untrack && s.untracked {
		return rules(matches, count(s.counter(kind)), notrack())
	}
	return rules(matches, count(s.counter(kind)))
}
