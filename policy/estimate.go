package policy

import "math"

// confidence is the z of every interval that an estimate carries: 3.29 leaves one in two thousand
// on each side, so that of a thousand sources judged by their lower bound half a one is judged
// too high.
const confidence = 3.29

// Estimate returns how many entries of the whole table belong to a source (a port, a class) of which
// the census saw that many: the proportional estimate, and the bounds between which the truth lies
// with a probability of 0.999. Decisions that hurt take the lower bound. Of a whole census all three
// are what was seen.
//
// The bounds are Wilson's score interval with continuity correction (R. G. Newcombe, Statistics in
// Medicine 17, 1998, method 4), which stays on the safe side for a handful of entries and at both
// ends, on the effective size of a sample without replacement from a finite
// table: n·(N−1)/(N−n), the usual finite population correction (W. G. Cochran, Sampling Techniques,
// 3rd edition, 2.6). They are never outside what is certain: at least the entries seen, at most all
// that were not seen to belong to somebody else.
func (c *Census) Estimate(seen int) (mid, low, high int) {
	n, total := c.Seen, max(c.Total, c.Seen)
	seen = min(max(seen, 0), n)
	if c.Whole || n == total {
		return seen, seen, seen
	}
	if n == 0 {
		return 0, 0, total
	}
	p := float64(seen) / float64(n)
	effective := float64(n) * float64(total-1) / float64(total-n)
	lowShare := 1 - wilsonUpper(1-p, effective)
	highShare := wilsonUpper(p, effective)
	within := func(entries float64) int { return min(max(int(entries), seen), total-(n-seen)) }
	mid = within(math.Round(p * float64(total)))
	low = min(within(math.Floor(lowShare*float64(total))), mid)
	high = max(within(math.Ceil(highShare*float64(total))), mid)
	return mid, low, high
}

// wilsonUpper is the upper bound of a share p seen in n draws.
func wilsonUpper(p, n float64) float64 {
	if p >= 1 {
		return 1
	}
	const z, z2 = confidence, confidence * confidence
	root := math.Sqrt(z2 + 2 - 1/n + 4*p*(n*(1-p)-1))
	return min((2*n*p+z2+1+z*root)/(2*(n+z2)), 1)
}
