package control

import (
	"sync"
	"time"
)

// Point is what the table was like over one span of time: the highest value of each measure, so that a peak
// stays a peak however coarse its span has become. Field names are stable.
type Point struct {
	Time     time.Time `json:"time"`    // when the span begins
	Seconds  float64   `json:"seconds"` // how long it is; the newest goes on
	Fill     float64   `json:"fill_percent"`
	Pressure float64   `json:"pressure_percent"`
	Level    int       `json:"level"`
	Count    int       `json:"count"`
	Capacity int       `json:"capacity"`     // at the end of the span
	Drops    uint64    `json:"kernel_drops"` // new flows that the kernel refused within it
}

// grains are how the history gets coarser with age: so many spans of each length are kept, whatever happens.
// Together they reach twelve hours back and take about a hundred kilobytes.
var grains = []struct {
	span time.Duration
	kept int
}{{time.Second, 300}, {10 * time.Second, 360}, {time.Minute, 720}}

// history is what the table was like over the last hours. It goes by the monotonic clock, so that a clock that is
// set moves the past as a whole, and neither tears a hole into it nor folds it.
type history struct {
	mu     sync.Mutex
	begun  time.Time   // the first moment; zero before it
	latest time.Time   // the newest one
	drops  uint64      // what the kernel had counted then
	grains [][]segment // by grain, oldest first
}

// segment is a point and where it begins, in spans since the first moment.
type segment struct {
	Point
	number int64
}

// add takes a moment into all grains.
func (h *history) add(s *Status) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.begun.IsZero() {
		h.begun, h.drops, h.grains = s.Time, s.KernelDrops, make([][]segment, len(grains))
		for i, g := range grains {
			h.grains[i] = make([]segment, 0, g.kept)
		}
	}
	moment := Point{Fill: s.Fill, Pressure: s.Pressure, Level: s.Level, Count: s.Count, Capacity: s.Capacity}
	if s.KernelDrops > h.drops {
		moment.Drops = s.KernelDrops - h.drops
	}
	h.latest, h.drops = s.Time, s.KernelDrops
	for i, g := range grains {
		h.grains[i] = taken(h.grains[i], moment, int64(s.Time.Sub(h.begun)/g.span))
	}
}

// taken puts a moment into the span of that number, which is the newest one or a new one; the oldest makes way.
func taken(list []segment, moment Point, number int64) []segment {
	if n := len(list); n == 0 || list[n-1].number < number {
		if n == cap(list) {
			list = append(list[:0], list[1:]...)
		}
		return append(list, segment{moment, number})
	}
	last := &list[len(list)-1]
	last.Fill, last.Pressure = max(last.Fill, moment.Fill), max(last.Pressure, moment.Pressure)
	last.Level, last.Count = max(last.Level, moment.Level), max(last.Count, moment.Count)
	last.Capacity, last.Drops = moment.Capacity, last.Drops+moment.Drops
	return list
}

// points returns the history of the last so long, oldest first: each moment once, in the finest grain that has it.
func (h *history) points(last time.Duration) []Point {
	h.mu.Lock()
	defer h.mu.Unlock()
	list := []Point{}
	now := h.latest.Sub(h.begun)
	for i := len(h.grains) - 1; i >= 0; i-- {
		until := now + grains[i].span
		if i > 0 { // the finer one goes on where its whole spans begin
			until = time.Duration(h.grains[i-1][0].number) * grains[i-1].span
		}
		for _, s := range h.grains[i] {
			begin := time.Duration(s.number) * grains[i].span
			if begin+grains[i].span <= now-last || begin >= until {
				continue
			}
			s.Time, s.Seconds = h.latest.Add(begin-now), min(grains[i].span, until-begin).Seconds()
			list = append(list, s.Point)
		}
	}
	return list
}
