package measure

import "time"

// steadyFor is how much of the phase must remain for a recovery to count: a
// lucky last bucket is none.
const steadyFor = time.Second

// Recovery is the time from the start of a phase until success reached share
// percent and stayed there, over the rest of the phase, nil if it never did. Zero
// means that it never fell below.
func Recovery(reqs []Request, from, to, width time.Duration, share float64) *float64 {
	for at := from; at+steadyFor <= to; at += width {
		rest := Success(Between(reqs, at, to))
		first := Success(Between(reqs, at, at+width))
		if rest != nil && *rest >= share && (first == nil || *first >= share) {
			v := (at - from).Seconds()
			return &v
		}
	}
	return nil
}

// Sample is the state of the table at one moment.
type Sample struct {
	Seconds float64 `json:"seconds"`
	Count   int     `json:"count"`
	Fill    float64 `json:"fill_percent"`
	// Level is the guard's, -1 where the guard has none.
	Level int `json:"level"`
	// Drops is the kernel's count of packets it refused since the start: drop
	// and insert_failed together.
	Drops uint64 `json:"drops"`
	// EarlyDrops is the kernel's count of entries evicted to make room.
	EarlyDrops uint64 `json:"early_drops"`
}

// Peak is the highest fill in [from, to) seconds.
func Peak(samples []Sample, from, to float64) float64 {
	peak := 0.0
	for _, s := range samples {
		if s.Seconds >= from && s.Seconds < to {
			peak = max(peak, s.Fill)
		}
	}
	return peak
}

// Mean is the mean fill in [from, to) seconds.
func Mean(samples []Sample, from, to float64) float64 {
	n, total := 0, 0.0
	for _, s := range samples {
		if s.Seconds >= from && s.Seconds < to {
			n, total = n+1, total+s.Fill
		}
	}
	if n == 0 {
		return 0
	}
	return total / float64(n)
}

// SecondsAbove is how long fill was at or above mark: each sample stands for the time to
// the next.
func SecondsAbove(samples []Sample, mark float64) float64 {
	total := 0.0
	for i := 0; i+1 < len(samples); i++ {
		if samples[i].Fill >= mark {
			total += samples[i+1].Seconds - samples[i].Seconds
		}
	}
	return total
}

// Settled is the time from a moment until fill was at or below mark, which may move
// with time, with the guard at level zero, and stayed so; nil if it did not.
func Settled(samples []Sample, from float64, mark func(seconds float64) float64) *float64 {
	var at *float64
	for _, s := range samples {
		if s.Seconds < from {
			continue
		}
		calm := s.Fill <= mark(s.Seconds) && s.Level <= 0
		switch {
		case !calm:
			at = nil
		case at == nil:
			v := s.Seconds - from
			at = &v
		}
	}
	return at
}
