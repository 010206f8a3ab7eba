package nft

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"

	"ctguard/policy"
)

// scope is where a limit counts: in every conntrack zone, or in one. A packet's zone is known only once conntrack has
// seen it, so what counts in one zone comes after that, TCP too: it costs more, and hits nobody else. Each zone has
// sets, chains and meters of its own, and everybody has his share of the rate in each.
type scope struct {
	zoned bool
	zone  uint16
}

var everyZone scope

// scopeOf returns where a limit counts.
func scopeOf(l policy.Limit) scope {
	if !l.Zoned {
		return everyZone
	}
	return scope{true, l.Zone}
}

// suffix ends the names of what is a scope's.
func (s scope) suffix() string {
	if !s.zoned {
		return ""
	}
	return fmt.Sprint("_zone", s.zone)
}

// in is the set of a scope.
func (s addressSet) in(of scope) addressSet {
	s.name, s.of = s.name+of.suffix(), of
	return s
}

// in is the set of a scope.
func (s greedySet) in(of scope) greedySet {
	s.name += of.suffix()
	return s
}

// opening is the chain that new flows of the scope's go to.
func (s scope) opening() string { return "opening" + s.suffix() }

// mostZones is how many zones a table has sets for: twice as many as may have limits at a time. Those whose limits are
// over keep theirs until the table is made anew, because elements that the kernel has yet to collect point to chains.
const mostZones = 2 * policy.MostZones

// addZones keeps the sets and chains of every zone that has limits, from now on.
func (k *retained) addZones(limits []policy.Limit) {
	for _, l := range limits {
		if l.Zoned && k.zones == nil {
			k.zones = map[uint16]struct{}{}
		}
		if l.Zoned {
			k.zones[l.Zone] = struct{}{}
		}
	}
}

// scopes lists every zone's scope after that of everything, in a fixed order.
func (k *retained) scopes() []scope {
	list := []scope{everyZone}
	for _, zone := range slices.Sorted(maps.Keys(k.zones)) {
		list = append(list, scope{true, zone})
	}
	return list
}

// addressSets lists the address sets in the order in which they are made.
func (r *ruleset) addressSets() []addressSet {
	list := addressSets()
	for _, of := range r.scopes {
		list = append(list, zoneSets(of)...)
	}
	return list
}

// zoneSets lists the address sets that a zone has of its own.
func zoneSets(of scope) (list []addressSet) {
	if !of.zoned {
		return nil
	}
	for _, s := range slices.Concat(limited[:], butTCP[:], meters[:]) {
		list = append(list, s.in(of))
	}
	return list
}

// addZones makes the sets of zones that have had none.
func (b *batch) addZones(have, want *ruleset) {
	for _, of := range want.scopes {
		if slices.Contains(have.scopes, of) {
			continue
		}
		for _, s := range zoneSets(of) {
			b.note(b.conn.AddSet(b.addressSet(s), nil))
		}
	}
}

// greedySets lists the sets of limits that are not on whole sources, in the order in which they are made.
func greedySets(of ...map[greedySet][]greedyElement) []greedySet {
	all := make(map[greedySet]struct{})
	for _, sets := range of {
		for s := range sets {
			all[s] = struct{}{}
		}
	}
	byName := slices.SortedFunc(maps.Keys(all), func(a, b greedySet) int { return strings.Compare(a.name, b.name) })
	var list []greedySet
	for _, like := range slices.Concat(greedy[:], answered[:]) {
		for _, s := range byName {
			if s.v6 == like.v6 && s.peers == like.peers {
				list = append(list, s)
			}
		}
	}
	return list
}

// zoned sends new flows to the limits of their zone.
func (b builder) zoned() []rule {
	var list []rule
	for _, of := range b.zones {
		list = append(list, newRule(inZone(of.zone), goTo(of.opening())))
	}
	if len(list) == 0 {
		return nil
	}
	return append(sparesAllowed(), list...)
}

// inZone matches packets that conntrack has placed in a zone.
func inZone(zone uint16) statement {
	return statement{text: fmt.Sprint("ct zone ", zone), exprs: []expr.Any{
		&expr.Ct{Register: reg, Key: expr.CtKeyZONE}, equal(binaryutil.NativeEndian.PutUint16(zone)),
	}}
}

// openingIn sees the new flows of a zone.
func (b builder) openingIn(of scope) []rule {
	if !slices.Contains(b.zones, of) {
		return nil
	}
	return b.limited(of)
}
