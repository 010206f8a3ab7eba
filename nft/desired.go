package nft

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"ctguard/policy"
)

// Desired is the whole state that the table is to be brought to.
type Desired struct {
	Posture policy.Posture
	Allow   []netip.Prefix // sources that are never limited, blocked or dropped as invalid, whatever Posture says
}

// validate says what in d no ruleset can be made from.
func (d Desired) validate() error {
	for _, p := range d.Allow {
		if !p.IsValid() {
			return fmt.Errorf("allow prefix %v: not a prefix", p)
		}
	}
	for _, l := range d.Posture.Limits {
		if !l.Prefix.IsValid() {
			return fmt.Errorf("limit prefix %v: not a prefix", l.Prefix)
		}
		if l.Zoned && l.Kind == policy.Block {
			return fmt.Errorf("block of %v: a packet is in no zone before conntrack has seen it", l.Source())
		}
	}
	for _, n := range d.Posture.Notrack {
		if !validSelector(n.Selector) {
			return fmt.Errorf("notrack selector %+v: not a selector", n.Selector)
		}
	}
	for _, s := range slices.Concat(d.Posture.Synproxy, d.Posture.Learn) {
		plain, own := serviceOf(s)
		if !validSelector(s) || !s.OfTCP() || s.Last != 0 || !s.Translated() && (!own || plain.proto != policy.TCP) {
			return fmt.Errorf("synproxy service %+v: neither a port of TCP nor a service that is translated", s)
		}
	}
	return nil
}

func validSelector(s policy.Selector) bool {
	parsed, err := policy.ParseSelector(s.String())
	return err == nil && parsed == s
}

// element is a prefix in an address set.
type element struct {
	prefix netip.Prefix
	until  time.Time // the kernel removes the element then; zero means never
}

// order sorts elements by address, the widest of several prefixes with one address first.
func (e element) order(other element) int {
	return e.prefix.Compare(other.prefix)
}

// outermost returns the elements of one family, sorted and without those that another one covers: an
// interval set takes no overlaps. Of two equal prefixes the one that ends later stays.
func outermost(list []element, v6 bool) []element {
	family := make([]element, 0, len(list))
	for _, e := range list {
		if e.prefix.Addr().Is6() == v6 {
			family = append(family, e)
		}
	}
	slices.SortFunc(family, func(a, b element) int {
		return cmp.Or(a.order(b), compareEnds(b.until, a.until))
	})
	set := family[:0]
	for _, e := range family {
		if n := len(set); n == 0 || !set[n-1].prefix.Contains(e.prefix.Addr()) {
			set = append(set, e)
		}
	}
	return set
}

// overlap reports whether a prefix of one list shares an address with one of the other. In each they are sorted and
// apart from each other.
func overlap(a, b []element) bool {
	for len(a) > 0 && len(b) > 0 {
		switch {
		case a[0].prefix.Overlaps(b[0].prefix):
			return true
		case a[0].prefix.Addr().Less(b[0].prefix.Addr()):
			a = a[1:]
		default:
			b = b[1:]
		}
	}
	return false
}

// compareEnds orders ends in time; zero, which means never, is the latest.
func compareEnds(a, b time.Time) int {
	switch {
	case a.IsZero() && b.IsZero():
		return 0
	case a.IsZero():
		return 1
	case b.IsZero():
		return -1
	}
	return a.Compare(b)
}

// plain masks p and turns an IPv4 address that is mapped into IPv6 back into IPv4, the only form in
// which it appears in packets.
func plain(p netip.Prefix) netip.Prefix {
	if a := p.Addr(); a.Is4In6() && p.Bits() >= 96 {
		p = netip.PrefixFrom(a.Unmap(), p.Bits()-96)
	}
	return p.Masked()
}

// allowed returns d's allowlist.
func (d Desired) allowed() []element {
	list := make([]element, 0, len(d.Allow))
	for _, p := range d.Allow {
		list = append(list, element{prefix: plain(p)})
	}
	return list
}

// limits returns the limits of one kind in a scope that have not ended.
func (d Desired) limits(kind policy.LimitKind, of scope, butTCP bool, now time.Time) []element {
	list := make([]element, 0, len(d.Posture.Limits))
	for _, l := range d.Posture.Limits {
		if l.Kind == kind && scopeOf(l) == of && l.ButTCP == butTCP && (l.Until.IsZero() || l.Until.After(now)) {
			list = append(list, element{prefix: plain(l.Prefix), until: l.Until})
		}
	}
	return list
}
