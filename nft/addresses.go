package nft

import (
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"go4.org/netipx"
)

// settle is how far this process's idea of an element's end may be from the kernel's: the message
// takes a moment to arrive, and the kernel rounds to its own ticks.
const settle = 250 * time.Millisecond

// over reports whether the kernel has removed the element for certain.
func (e element) over(now time.Time) bool { return !e.until.IsZero() && now.After(e.until.Add(settle)) }

// ending reports whether the element ends by itself in a moment, or has just done so.
func (e element) ending(now time.Time) bool {
	return !e.until.IsZero() && now.After(e.until.Add(-settle))
}

// serves reports whether e, which is in the kernel, is good enough for an element that shall end at
// another time.
func (e element) serves(until, now time.Time) bool {
	if e.until.IsZero() || until.IsZero() {
		return e.until.IsZero() && until.IsZero()
	}
	return e.until.After(now) && until.Sub(e.until).Abs() <= until.Sub(now)/8
}

// changeAddresses brings an address set from have to want, both sorted, and returns what the kernel
// then has: where its element is good enough or about to end, that stays.
func (b *batch) changeAddresses(s addressSet, have, want []element, now time.Time) []element {
	var remove, add []nftables.SetElement
	result := make([]element, 0, len(want))
	for len(have) > 0 || len(want) > 0 {
		var old, wanted *element
		switch {
		case len(have) == 0 || len(want) > 0 && want[0].order(have[0]) < 0:
			wanted, want = &want[0], want[1:]
		case len(want) == 0 || have[0].order(want[0]) < 0:
			old, have = &have[0], have[1:]
		default:
			old, wanted, have, want = &have[0], &want[0], have[1:], want[1:]
		}
		if old != nil && old.stays(wanted, now) {
			result = append(result, *old)
			continue
		}
		if old != nil && !old.over(now) {
			remove = appendInterval(remove, s, *old, now)
		}
		if wanted != nil {
			add = appendInterval(add, s, *wanted, now)
			result = append(result, *wanted)
		}
	}
	b.changeElements(b.addressSet(s), remove, add)
	return result
}

// stays reports whether e, which is in the kernel, is left alone. What is not wanted any more and about
// to end is: deleting what may be gone by the time the message arrives would fail the batch.
func (e element) stays(wanted *element, now time.Time) bool {
	if e.over(now) {
		return false
	}
	if wanted == nil {
		return e.ending(now)
	}
	return e.serves(wanted.until, now)
}

// appendInterval appends e as the two ends of an interval, the second exclusive. A prefix that ends
// with the last address has no second end.
func appendInterval(list []nftables.SetElement, s addressSet, e element, now time.Time) []nftables.SetElement {
	p := e.prefix
	first := nftables.SetElement{Key: p.Addr().AsSlice()}
	if !e.until.IsZero() {
		first.Timeout = max(e.until.Sub(now), time.Millisecond)
	}
	if s.kind == directing {
		first.VerdictData = &expr.Verdict{Kind: expr.VerdictGoto, Chain: prefixRateOf(p, s.of).chain()}
	}
	after := netipx.PrefixLastIP(p).Next()
	if !after.IsValid() {
		first.IntervalOpen = true
		return append(list, first)
	}
	return append(list, first, nftables.SetElement{Key: after.AsSlice(), IntervalEnd: true})
}
