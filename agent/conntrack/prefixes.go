package conntrack

import (
	"cmp"
	"net/netip"
	"slices"
	"sort"

	"ctguard/policy"
)

// prefixMap finds the longest prefix of a zone that holds an address, and the value stored with it.
type prefixMap struct {
	lengths []int // of the stored prefixes, longest first, IPv4 counted from 96
	values  map[prefixKey]int32
}

type prefixKey struct {
	address address
	bits    int
	zone    uint16
}

func (m *prefixMap) add(s policy.Source, value int32) {
	a, bits := addressOf(s.Prefix.Addr()), bitsOf(s.Prefix)
	if m.values == nil {
		m.values = make(map[prefixKey]int32)
	}
	m.values[prefixKey{a.mask(bits), bits, s.Zone}] = value
	if !slices.Contains(m.lengths, bits) {
		m.lengths = append(m.lengths, bits)
		slices.SortFunc(m.lengths, func(a, b int) int { return b - a })
	}
}

func (m *prefixMap) find(a address, zone uint16) (value int32, ok bool) {
	for _, bits := range m.lengths {
		if bits < 96 && a.is4() {
			return 0, false // an IPv6 prefix that covers the mapped addresses means none of them
		}
		if value, ok = m.values[prefixKey{a.mask(bits), bits, zone}]; ok {
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
// that they cover. Each family has its own: ::/0 does not mean IPv4.
type prefixSet struct{ four, six []addressRange }

type addressRange struct{ first, last address }

func newPrefixSet(prefixes []netip.Prefix) prefixSet {
	var s prefixSet
	for _, p := range prefixes {
		if !p.IsValid() {
			continue
		}
		bits := bitsOf(p)
		first := addressOf(p.Addr()).mask(bits)
		ones := address{^uint64(0), ^uint64(0)}.mask(bits)
		r := addressRange{first, address{first.hi | ^ones.hi, first.lo | ^ones.lo}}
		if p.Addr().Is4() {
			s.four = append(s.four, r)
		} else {
			s.six = append(s.six, r)
		}
	}
	s.four, s.six = outermost(s.four), outermost(s.six)
	return s
}

// outermost sorts ranges and drops those that lie within another one. Two prefixes either nest or have nothing in
// common, so a range that begins inside another one ends there too.
func outermost(all []addressRange) (kept []addressRange) {
	slices.SortFunc(all, func(a, b addressRange) int {
		return cmp.Or(a.first.compare(b.first), b.last.compare(a.last))
	})
	for _, r := range all {
		if n := len(kept); n == 0 || r.first.compare(kept[n-1].last) > 0 {
			kept = append(kept, r)
		}
	}
	return kept
}

func (s prefixSet) contains(a address) bool {
	ranges := s.six
	if a.is4() {
		ranges = s.four
	}
	i := sort.Search(len(ranges), func(i int) bool { return ranges[i].last.compare(a) >= 0 })
	return i < len(ranges) && ranges[i].first.compare(a) <= 0
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
