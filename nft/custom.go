package nft

import (
	"net/netip"
	"strings"

	"ctguard/policy"
)

// custom is a selector that is no plain service: it has rules and named counters of its own.
type custom struct {
	selector  policy.Selector
	untracked bool
	counted   bool // what becomes of its packets is counted now
}

// shown reports whether it has rules.
func (s custom) shown() bool { return s.untracked || s.counted }

// counter returns the name of one of s's counters. A name is made of what nft takes unquoted:
// letters, digits and _./- . It is at most 200 bytes long, of the 255 that NFT_OBJ_MAXNAMELEN allows.
func (s custom) counter(kind string) string { return nameOf(kind, s.selector) }

// nameOf names something of a selector's.
func nameOf(kind string, s policy.Selector) string {
	return kind + "_" + strings.NewReplacer(" with ", "_", " at ", "_at_", " on ", "_on_", " to ", "_to_", " by ", "_by_",
		":", "-", "[", "", "]", "").Replace(strings.Replace(s.String(), "/", "_", 1))
}

// counters returns the names of all of s's counters.
func (s custom) counters() []string {
	kinds := []string{requests, delivered, replies, sent, asked}
	if s.selector.OfTCP() {
		kinds = append(kinds, opened)
	}
	if s.selector.Whole() {
		kinds = append(kinds, answers, heard)
	}
	names := make([]string, len(kinds))
	for i, kind := range kinds {
		names[i] = s.counter(kind)
	}
	return names
}

// direction is a way that packets of a selector go: which side of them is whose, and what names the
// interface.
type direction struct {
	remote, local side
	by            func(device string) statement
	echo          [2]icmpKind
}

var (
	inward  = direction{source, destination, comesBy, echoRequest}
	outward = direction{destination, source, leavesBy, echoReply}
)

// incoming returns what matches requests, each list one rule's statements. The caller has seen to it
// that the packet is for this host, except for groups.
func (s custom) incoming() [][]statement { return s.matches(inward) }

// outgoing returns what matches the answers.
func (s custom) outgoing() [][]statement { return s.matches(outward) }

// received is incoming where it is not known that the packet is for one of this host's addresses.
func (s custom) received() [][]statement {
	list := s.incoming()
	if !s.selector.Group {
		for i := range list {
			list[i] = append(list[i], going(toLocal))
		}
	}
	return list
}

// matches returns the statements of either direction.
func (s custom) matches(d direction) [][]statement {
	sel := s.selector
	if sel.Group {
		return [][]statement{{notTCP(), going(toMulticast)}, {notTCP(), going(toBroadcast)}} // TCP has one receiver
	}
	var from []statement
	if sel.Device != "" {
		from = append(from, d.by(sel.Device))
	}
	from = append(from, d.between(sel.Remote, sel.Local)...)
	first, last := sel.Ports()
	switch {
	case sel.Protocol == policy.All:
		return [][]statement{from}
	case sel.Protocol == policy.ICMP:
		return s.echoes(from, d.echo)
	case sel.Port == 0:
		return [][]statement{append(from, protocol(ipProtocols[sel.Protocol]))}
	case first != last:
		return [][]statement{append(from, d.local.within(sel.Protocol, first, last))}
	}
	return [][]statement{append(from, d.local.is(sel.Protocol, sel.Port))}
}

// between returns what matches the two ends of a packet. A prefix that holds a whole family says
// nothing where the other one names the family too.
func (d direction) between(remote, local netip.Prefix) []statement {
	var list []statement
	if remote.IsValid() {
		list = append(list, d.remote.in(plain(remote)))
	}
	if local.IsValid() {
		list = append(list, d.local.in(plain(local)))
	}
	for i := range list {
		if len(list) == 2 && len(list[i].exprs) == 0 {
			return list[1-i : 2-i]
		}
	}
	return list
}

// echoes returns the statements for each of the kinds that a selector's prefixes allow.
func (s custom) echoes(from []statement, kinds [2]icmpKind) [][]statement {
	var list [][]statement
	for _, kind := range kinds {
		other := func(p netip.Prefix) bool { return p.IsValid() && plain(p).Addr().Is6() != kind.v6 }
		if !other(s.selector.Remote) && !other(s.selector.Local) {
			list = append(list, append(from[:len(from):len(from)], kind.statement()))
		}
	}
	return list
}

// opening returns rules that count the packets which open a flow: of TCP its first, of the others all.
func (s custom) opening() []rule {
	if !s.selector.OfTCP() {
		return nil
	}
	list := rules(s.incoming(), opensTCP(), count(s.counter(opened)))
	if s.selector.Protocol == policy.All {
		list = append(list, rules(s.incoming(), notTCP(), count(s.counter(opened)))...)
	}
	return list
}

// answering returns rules that count the answers to what this host asks itself, as far as they can be
// told from everything else: to the connections that it opens and to its questions to name servers.
func (s custom) answering(kind string) []rule {
	if !s.selector.Whole() {
		return nil
	}
	var list []rule
	if s.selector.OfTCP() {
		list = rules(s.incoming(), acceptsTCP(), count(s.counter(kind)))
	}
	if s.selector.Protocol != policy.TCP {
		list = append(list, rules(s.incoming(), source.is(policy.UDP, domainPort), count(s.counter(kind)))...)
	}
	return list
}

// domainPort is where name servers answer from (RFC 1035, 4.2).
const domainPort = 53

// rules makes one rule of each match.
func rules(matches [][]statement, then ...statement) []rule {
	list := make([]rule, 0, len(matches))
	for _, m := range matches {
		list = append(list, newRule(append(m[:len(m):len(m)], then...)...))
	}
	return list
}

// asked returns rules for requests: between looks they are counted apart.
func (s custom) asked() []rule {
	switch {
	case s.counted:
		return s.counting(requests, s.incoming(), true)
	case s.untracked:
		return s.counting(asked, s.incoming(), true)
	}
	return nil
}

// answered returns rules for answers.
func (s custom) answered() []rule {
	switch {
	case s.counted:
		return s.counting(replies, s.outgoing(), true)
	case s.untracked && s.selector.Group:
		return rules(s.outgoing(), notrack())
	case s.untracked:
		return rules(s.outgoing(), jump("leave"))
	}
	return nil
}

// counting returns rules that count into one of s's counters and, if asked, leave the packet untracked.
func (s custom) counting(kind string, matches [][]statement, untrack bool) []rule {
	if (kind == requests || kind == asked) && !s.selector.Group {
		for i := range matches {
			matches[i] = append(matches[i][:len(matches[i]):len(matches[i])], fromSomebody())
		}
	}
	switch {
	case untrack && s.untracked && kind == replies && !s.selector.Group:
		return rules(matches, count(s.counter(kind)), jump("leave"))
	case untrack && s.untracked:
		return rules(matches, count(s.counter(kind)), notrack())
	}
	return rules(matches, count(s.counter(kind)))
}
