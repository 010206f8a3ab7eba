package report

import (
	"fmt"
	"io"
	"math"
	"strings"

	"ctguard/cmd/ctlab/internal/lab"
	"ctguard/cmd/ctlab/internal/measure"
)

// blocks are the eighths of a character's height.
var blocks = []rune(" ▁▂▃▄▅▆▇█")

// chartWidth is the number of columns of a terminal chart.
const chartWidth = 60

// Chart draws results for the terminal: fill and clients' success over time, one pair of
// lines for each result, and below them when the attack was on.
func Chart(w io.Writer, results []*lab.Result) error {
	var b strings.Builder
	for _, r := range results {
		end := duration(r)
		fills := columns(end, chartWidth, func(from, to float64) float64 { return measure.Peak(r.Samples, from, to) })
		good := columns(end, chartWidth, func(from, to float64) float64 { return success(r.HTTP.Buckets, from, to) })
		fmt.Fprintf(&b, "%-14s fill    %s %3.0f %%\n", r.Scenario.Guard, spark(fills), r.Fill.End)
		fmt.Fprintf(&b, "%-14s served  %s %3.0f %%\n", "", spark(good), last(good))
		onset, over := r.Scenario.Calm.Seconds(), (r.Scenario.Calm + r.Scenario.AttackFor).Seconds()
		fmt.Fprintf(&b, "%-14s attack  %s\n", "", marks(end, onset, over))
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func duration(r *lab.Result) float64 {
	if n := len(r.Samples); n > 0 {
		return r.Samples[n-1].Seconds
	}
	return 0
}

// columns evaluates fn on n stretches of equal length; NaN says there is nothing to show.
func columns(end float64, n int, fn func(from, to float64) float64) []float64 {
	out := make([]float64, n)
	for i := range out {
		out[i] = fn(end*float64(i)/float64(n), end*float64(i+1)/float64(n))
	}
	return out
}

// success is the served share in percent of the buckets that touch [from, to).
func success(buckets []measure.Bucket, from, to float64) float64 {
	asked, ok := 0, 0
	for _, b := range buckets {
		if b.Seconds < to && b.Seconds+bucketSeconds > from {
			asked, ok = asked+b.Asked, ok+b.Served
		}
	}
	if asked == 0 {
		return math.NaN()
	}
	return 100 * float64(ok) / float64(asked)
}

const bucketSeconds = 0.25

func spark(values []float64) string {
	var b strings.Builder
	for _, v := range values {
		if math.IsNaN(v) {
			b.WriteByte(' ')
			continue
		}
		i := int(math.Ceil(v / 100 * float64(len(blocks)-1)))
		b.WriteRune(blocks[min(max(i, 0), len(blocks)-1)])
	}
	return b.String()
}

func marks(end, onset, over float64) string {
	var b strings.Builder
	for i := range chartWidth {
		at := end * (float64(i) + 0.5) / chartWidth
		if at >= onset && at < over {
			b.WriteRune('═')
		} else {
			b.WriteRune('·')
		}
	}
	return b.String()
}

// last is the last value that is one.
func last(values []float64) float64 {
	for i := len(values) - 1; i >= 0; i-- {
		if !math.IsNaN(values[i]) {
			return values[i]
		}
	}
	return 0
}
