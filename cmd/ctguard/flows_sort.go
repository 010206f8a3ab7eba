package main

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	"ctguard/agent/conntrack"
)

// sortedUnasked is how many entries a sorted list has where nobody says how many.
const sortedUnasked = 50

// orders are how `ctguard flows --sort` may sort: what comes first is what one looks for.
var orders = map[string]func(a, b conntrack.Entry) int{
	"silent": func(a, b conntrack.Entry) int { return cmp.Compare(b.Silent, a.Silent) }, // the longest first
	"left":   func(a, b conntrack.Entry) int { return cmp.Compare(b.Left, a.Left) },     // likewise
	"source": func(a, b conntrack.Entry) int {
		return cmp.Or(a.Source.Compare(b.Source), a.Destination.Compare(b.Destination))
	},
	"destination": func(a, b conntrack.Entry) int {
		return cmp.Or(a.Destination.Compare(b.Destination), a.Source.Compare(b.Source))
	},
	"state": func(a, b conntrack.Entry) int {
		return cmp.Or(cmp.Compare(a.Protocol, b.Protocol), strings.Compare(a.State, b.State))
	},
}

// orderNames lists the orders.
func orderNames() []string { return slices.Sorted(maps.Keys(orders)) }

// best keeps the first n entries of an order, on memory for twice as many.
type best struct {
	order func(a, b conntrack.Entry) int
	n     int
	list  []conntrack.Entry
}

func (b *best) add(e conntrack.Entry) {
	if b.list = append(b.list, e); len(b.list) >= 2*b.n {
		b.cut()
	}
}

// cut sorts, and forgets what is not among the first n.
func (b *best) cut() []conntrack.Entry {
	slices.SortStableFunc(b.list, b.order)
	b.list = b.list[:min(b.n, len(b.list))]
	return b.list
}
