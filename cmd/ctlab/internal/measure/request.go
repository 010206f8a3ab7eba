package measure

import (
	"cmp"
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"time"
)

// Request is one client's attempt.
type Request struct {
	At   time.Duration // when it began
	Took time.Duration
	OK   bool
}

// MarshalJSON writes a request as [at, took, ok] in microseconds: there are
// thousands of them.
func (r Request) MarshalJSON() ([]byte, error) {
	ok := 0
	if r.OK {
		ok = 1
	}
	return fmt.Appendf(nil, "[%d,%d,%d]", r.At.Microseconds(), r.Took.Microseconds(), ok), nil
}

// UnmarshalJSON reads what MarshalJSON wrote.
func (r *Request) UnmarshalJSON(b []byte) error {
	var v [3]int64
	if err := json.Unmarshal(b, &v); err != nil {
		return fmt.Errorf("read request: %w", err)
	}
	*r = Request{At: time.Duration(v[0]) * time.Microsecond, Took: time.Duration(v[1]) * time.Microsecond, OK: v[2] == 1}
	return nil
}

// Bucket counts the requests that began in one stretch of time.
type Bucket struct {
	Seconds float64 `json:"seconds"`
	Asked   int     `json:"asked"`
	Served  int     `json:"served"`
}

// Buckets sorts requests into stretches of the given width, from zero to end.
func Buckets(reqs []Request, width, end time.Duration) []Bucket {
	out := make([]Bucket, int((end+width-1)/width))
	for i := range out {
		out[i].Seconds = (time.Duration(i) * width).Seconds()
	}
	for _, r := range reqs {
		i := int(r.At / width)
		if r.At < 0 || i >= len(out) {
			continue
		}
		out[i].Asked++
		if r.OK {
			out[i].Served++
		}
	}
	return out
}

// Between is the requests that began in [from, to).
func Between(reqs []Request, from, to time.Duration) []Request {
	var out []Request
	for _, r := range reqs {
		if r.At >= from && r.At < to {
			out = append(out, r)
		}
	}
	return out
}

// Success is the served share in percent, nil where nothing was asked.
func Success(reqs []Request) *float64 {
	if len(reqs) == 0 {
		return nil
	}
	ok := 0
	for _, r := range reqs {
		if r.OK {
			ok++
		}
	}
	v := 100 * float64(ok) / float64(len(reqs))
	return &v
}

// Quantile is the q-quantile (0–1) of the time that served requests took, in
// milliseconds; nil where none was served.
func Quantile(reqs []Request, q float64) *float64 {
	var took []time.Duration
	for _, r := range reqs {
		if r.OK {
			took = append(took, r.Took)
		}
	}
	if len(took) == 0 {
		return nil
	}
	slices.Sort(took)
	i := min(len(took)-1, int(math.Ceil(q*float64(len(took))))-1)
	v := float64(took[max(0, i)].Microseconds()) / 1000
	return &v
}

// Median is the middle of some values, the upper one of two; zero of none.
func Median(values []float64) float64 {
	if len(values) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(values))
	return sorted[len(sorted)/2]
}

// Outage is the longest time in which requests were made and none of them served,
// from the first that failed to the next that was served, or to end.
func Outage(reqs []Request, end time.Duration) time.Duration {
	sorted := slices.SortedFunc(slices.Values(reqs), func(a, b Request) int { return cmp.Compare(a.At, b.At) })
	var longest time.Duration
	from := time.Duration(-1)
	for _, r := range sorted {
		switch {
		case !r.OK && from < 0:
			from = r.At
		case r.OK && from >= 0:
			longest = max(longest, r.At-from)
			from = -1
		}
	}
	if from >= 0 {
		longest = max(longest, end-from)
	}
	return longest
}
