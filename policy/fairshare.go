package policy

import (
	"cmp"
	"math"
	"slices"
)

// share is what one source wants of something that is divided, and how many shares it has.
type share struct {
	entries float64
	weight  float64
}

// fairShare returns the largest cap C with sum(min(entries, weight*C)) + rest <= target: max-min
// fairness (Bertsekas and Gallager, Data Networks, 6.5.2). rest are entries that nobody can be
// asked for. It returns +Inf when everybody fits, and 0 when not even the rest does.
func fairShare(shares []share, rest, target float64) float64 {
	// Raise C from 0. A source stops growing once weight*C reaches its entries, so sources drop out
	// in the order of entries/weight, and between two drop-outs the sum is linear in C.
	order := slices.SortedFunc(slices.Values(shares), func(a, b share) int {
		return cmp.Compare(a.entries/a.weight, b.entries/b.weight)
	})
	growing := 0.0
	for _, s := range order {
		growing += s.weight
	}
	left := target - rest
	if left <= 0 && len(shares) > 0 {
		return 0
	}
	for _, s := range order {
		c := left / growing
		if c < s.entries/s.weight {
			return c
		}
		left -= s.entries
		growing -= s.weight
	}
	return math.Inf(1)
}
