package policy

import "math"

// claim is what one source has of something that is divided.
type claim struct {
	source Source
	has    float64 // entries now
	usual  float64 // entries on an ordinary day
	weight float64 // how many fair shares it has
}

// grown returns what a source has beyond its usual holding.
func (c claim) grown() float64 { return max(0, c.has-c.usual) }

// networkBits are the prefix lengths by which newcomers are judged together, the widest first. A botnet of
// a thousand addresses in one network, or a customer who uses all of a /48, gets one network's part.
// RFC 6177 has sites from /48 to /64; nobody announces less than a /24 of IPv4.
var networkBits = map[bool][]int{true: {24}, false: {48, 56}}

// divided is how something was divided.
type divided struct {
	keep  []float64 // by claim: what it may keep; +Inf where nobody is asked for anything
	floor []float64 // by claim: what it is not pressed below
	share float64   // the least that one who is above its share may keep, by weight; +Inf where nobody is
}

// divide shares target out: first what each source usually has, then growth and newcomers max-min, where
// the newcomers of one network have one share together. rest is what nobody can be asked for. floor is what
// nobody is pressed below who is not one of a crowd in one network. Where nothing is known of an ordinary day
// (byNetwork is false) everybody is judged by itself.
//
// Nobody is asked for anything where those above their share make up but a small part of the excess: then
// the flood comes from sources that each hold next to nothing (spoofed addresses), and taking from honest
// users would not stop it.
func divide(claims []claim, rest, target, floor float64, byNetwork bool) divided {
	d := divided{keep: make([]float64, len(claims)), share: math.Inf(1)}
	reserved, all := 0.0, rest
	for _, c := range claims {
		reserved += min(c.has, c.usual)
		all += c.has
	}
	members := make([]int, len(claims))
	for i := range claims {
		members[i] = i
	}
	top := -1
	if byNetwork {
		top = 0
	}
	d.floor = make([]float64, len(claims))
	for i, c := range claims {
		d.floor[i] = floor * c.weight
	}
	d.give(claims, members, target-rest-reserved, top)
	above := 0.0
	for i, c := range claims {
		d.keep[i] = max(d.keep[i]+min(c.has, c.usual), d.floor[i])
		if excess := c.has - d.keep[i]; excess > 0 {
			above += excess
			d.share = min(d.share, d.keep[i]/c.weight)
		}
	}
	if above == 0 || above < worthwhile*(all-target) {
		for i := range d.keep {
			d.keep[i] = math.Inf(1)
		}
		d.share = math.Inf(1)
	}
	return d
}

// give shares room out among what the members have grown by: by networks of the given level, or, with -1,
// source by source.
func (d *divided) give(claims []claim, members []int, room float64, level int) {
	groups := grouped(claims, members, level)
	wants := make([]share, len(groups))
	for i, g := range groups {
		for _, m := range g.members {
			wants[i].entries += claims[m].grown()
		}
		wants[i].weight = g.weight
	}
	each := fairShare(wants, 0, max(0, room))
	if room <= 0 {
		each = 0
	}
	for i, g := range groups {
		part := min(wants[i].entries, each*g.weight)
		switch {
		case len(g.members) == 1:
			d.keep[g.members[0]] = part
		case part >= wants[i].entries:
			for _, m := range g.members {
				d.keep[m] = claims[m].grown()
			}
		default:
			for _, m := range g.members { // or many with a little each would have a floor of thousands together
				d.floor[m] = min(d.floor[m], 1)
			}
			d.give(claims, g.members, part, g.next)
		}
	}
}

// claimants is members that have a share together.
type claimants struct {
	members []int
	weight  float64
	next    int // the level at which they are told apart
}

// grouped puts newcomers of one network together. Who has a usual holding, or a weight, is judged alone.
func grouped(claims []claim, members []int, level int) []claimants {
	var groups []claimants
	index := make(map[Source]int)
	for _, m := range members {
		c := claims[m]
		bits := networkBits[c.source.Prefix.Addr().Is4()]
		alone := level < 0 || level >= len(bits) || c.usual > 0 || c.weight != 1 || c.source.Prefix.Bits() <= bits[level]
		if alone {
			groups = append(groups, claimants{[]int{m}, c.weight, -1})
			continue
		}
		network := c.source.within(bits[level])
		i, known := index[network]
		if !known {
			i = len(groups)
			index[network] = i
			next := level + 1
			if next >= len(bits) {
				next = -1
			}
			groups = append(groups, claimants{nil, 1, next})
		}
		groups[i].members = append(groups[i].members, m)
	}
	return groups
}
