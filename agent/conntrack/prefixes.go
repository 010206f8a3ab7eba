package conntrack

import (
	"net/netip"
	"slices"
	"sort"
)

// prefixMap finds the longest prefix that holds an address, and the value stored with it.
type prefixMap struct {
	lengths []int // of the stored prefixes, longest first, IPv4 counted from 96
	values  map[prefixKey]int32
}

type prefixKey struct {
	address address
	bits    int
}

func (m *prefixMap) add(p netip.Prefix, value int32) {
	a, bits := addressOf(p.Addr()), bitsOf(p)
	if m.values == nil {
		m.values = make(map[prefixKey]int32)
	}
	m.values[prefixKey{a.mask(bits), bits}] = value
	if !slices.Contains(m.lengths, bits) {
		m.lengths = append(m.lengths, bits)
		slices.SortFunc(m.lengths, func(a, b int) int { return b - a })
	}
}

func (m *prefixMap) find(a address) (value int32, ok bool) {
	for _, bits := range m.lengths {
		if value, ok = m.values[prefixKey{a.mask(bits), bits}]; ok {
			return value, true
		}
	}
	return 0, false
}

// bitsOf is the length of a prefix in the 128 bits of an address.
func bitsOf(p netip.Prefix) int {
	if p.Addr().Is4() {
		return 96 + p.Bits()
	}
	return p.Bits()
}

// prefixSet says whether an address is in any of a set of prefixes, by binary search in the ranges
// that they cover.
type prefixSet struct{ ranges []addressRange }

type addressRange struct{ first, last address }

func newPrefixSet(prefixes []netip.Prefix) prefixSet {
	var all []addressRange
	for _, p := range prefixes {
		if !p.IsValid() {
			continue
		}
		bits := bitsOf(p)
		first := addressOf(p.Addr()).mask(bits)
		ones := address{^uint64(0), ^uint64(0)}.mask(bits)
		all = append(all, addressRange{first, address{first.hi | ^ones.hi, first.lo | ^ones.lo}})
	}
	slices.SortFunc(all, func(a, b addressRange) int { return a.first.compare(b.first) })
	var s prefixSet
	for _, r := range all {
		// Prefixes nest or are apart: a range that begins inside the one before lies inside it.
		if n := len(s.ranges); n > 0 && r.first.compare(s.ranges[n-1].last) <= 0 {
			if r.last.compare(s.ranges[n-1].last) > 0 {
				s.ranges[n-1].last = r.last
			}
			continue
		}
		s.ranges = append(s.ranges, r)
	}
	return s
}

func (s prefixSet) contains(a address) bool {
	i := sort.Search(len(s.ranges), func(i int) bool { return s.ranges[i].last.compare(a) >= 0 })
	return i < len(s.ranges) && s.ranges[i].first.compare(a) <= 0
}

func (a address) compare(b address) int {
	switch {
	case a.hi < b.hi || a.hi == b.hi && a.lo < b.lo:
		return -1
	case a == b:
		return 0
	}
	return 1
}
