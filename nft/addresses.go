package nft

import (
	"net/netip"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

// settle is how far this process's idea of an element's end may be from the kernel's: the message
// takes a moment to arrive, and the kernel rounds to its own ticks.
const settle = 250 * time.Millisecond

// over reports whether the kernel has removed the element for certain.
func (e entry) over(now time.Time) bool { return !e.until.IsZero() && now.After(e.until.Add(settle)) }

// ending reports whether the element ends by itself in a moment, or has just done so.
func (e entry) ending(now time.Time) bool {
	return !e.until.IsZero() && now.After(e.until.Add(-settle))
}

// serves reports whether e, which is in the kernel, is good enough for an element that shall end at
// another time.
func (e entry) serves(until, now time.Time) bool {
	if e.until.IsZero() || until.IsZero() {
		return e.until.IsZero() && until.IsZero()
	}
	return e.until.After(now) && until.Sub(e.until).Abs() <= until.Sub(now)/8
}

// changeAddresses brings an address set from have to want. Where the kernel's element stays as it is
// although want has another end for it, want is given the kernel's.
func (b *batch) changeAddresses(s addressSet, have, want map[netip.Prefix]entry, now time.Time) {
	var remove, add []nftables.SetElement
	for p, old := range have {
		wanted, ok := want[p]
		switch {
		case old.over(now):
		case ok && old.serves(wanted.until, now):
			want[p] = old
		case !ok && old.ending(now):
			// Deleting what may be gone by the time the message arrives would fail the batch.
			want[p] = old
		default:
			remove = append(remove, interval(s, p, 0)...)
		}
	}
	for p, e := range want {
		if old, ok := have[p]; ok && old == e && !old.over(now) {
			continue
		}
		var timeout time.Duration
		if !e.until.IsZero() {
			timeout = max(e.until.Sub(now), time.Millisecond)
		}
		add = append(add, interval(s, p, timeout)...)
	}
	b.changeElements(b.addressSet(s), remove, add)
}

// interval returns a prefix as the two ends of an interval, the second exclusive. A prefix that ends
// with the last address has no second end.
func interval(s addressSet, p netip.Prefix, timeout time.Duration) []nftables.SetElement {
	first := nftables.SetElement{Key: p.Addr().AsSlice(), Timeout: timeout}
	if s.kind == directing {
		first.VerdictData = &expr.Verdict{Kind: expr.VerdictGoto, Chain: rationOf(p).chain()}
	}
	after := lastOf(p).Next()
	if !after.IsValid() {
		first.IntervalOpen = true
		return []nftables.SetElement{first}
	}
	return []nftables.SetElement{first, {Key: after.AsSlice(), IntervalEnd: true}}
}

// lastOf returns the last address of p.
func lastOf(p netip.Prefix) netip.Addr {
	bytes := p.Addr().AsSlice()
	for i, m := range maskOf(p.Addr().BitLen(), p.Bits()) {
		bytes[i] |= ^m
	}
	addr, _ := netip.AddrFromSlice(bytes)
	return addr
}
