package nft

import (
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
	}
	for _, n := range d.Posture.Notrack {
		if !validSelector(n.Selector) {
			return fmt.Errorf("notrack selector %+v: not a selector", n.Selector)
		}
	}
	return nil
}

func validSelector(s policy.Selector) bool {
	parsed, err := policy.ParseSelector(s.String())
	return err == nil && parsed == s
}

// entry is what an address set holds for a prefix.
type entry struct {
	until time.Time // the kernel removes the element then; zero means never
}

// outermost turns prefixes into the elements of one interval set, which must not overlap: a prefix
// that another one covers is left out. Of two equal prefixes the one that ends later stays.
func outermost(list []limit, v6 bool) map[netip.Prefix]entry {
	family := make([]limit, 0, len(list))
	for _, l := range list {
		if l.prefix.Addr().Is6() == v6 {
			family = append(family, l)
		}
	}
	slices.SortFunc(family, func(a, b limit) int {
		if c := a.prefix.Addr().Compare(b.prefix.Addr()); c != 0 {
			return c
		}
		if a.prefix.Bits() != b.prefix.Bits() {
			return a.prefix.Bits() - b.prefix.Bits()
		}
		return compareEnds(b.until, a.until)
	})
	set := make(map[netip.Prefix]entry, len(family))
	var last netip.Prefix
	for _, l := range family {
		if last.IsValid() && last.Contains(l.prefix.Addr()) {
			continue
		}
		last = l.prefix
		set[l.prefix] = entry{until: l.until}
	}
	return set
}

// limit is a prefix in its plain form and until when it counts.
type limit struct {
	prefix netip.Prefix
	until  time.Time
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

// allowed returns d's allowlist as limits without an end.
func (d Desired) allowed() []limit {
	list := make([]limit, 0, len(d.Allow))
	for _, p := range d.Allow {
		list = append(list, limit{prefix: plain(p)})
	}
	return list
}

// limits returns the limits of one kind that have not ended.
func (d Desired) limits(kind policy.LimitKind, now time.Time) []limit {
	var list []limit
	for _, l := range d.Posture.Limits {
		if l.Kind == kind && (l.Until.IsZero() || l.Until.After(now)) {
			list = append(list, limit{prefix: plain(l.Prefix), until: l.Until})
		}
	}
	return list
}
