package control

import "time"

// Column is what one column of a chart stands for.
type Column struct {
	Fill, Pressure float64
	Level          int
	Drops          uint64
	Known          bool // there is a history of it
}

// Columns cuts the last so long of a history into n columns: the highest fill, pressure and level of each, and what
// was refused in it. Where a point is longer than a column, it is in all that it covers, and what was refused in the
// first of them.
func Columns(points []Point, window time.Duration, n int) []Column {
	list := make([]Column, n)
	if len(points) == 0 {
		return list
	}
	begin := points[len(points)-1].end().Add(-window)
	place := func(at time.Time) int { return int(float64(n) * float64(at.Sub(begin)) / float64(window)) }
	for _, p := range points {
		if p.end().Before(begin) {
			continue
		}
		first := max(0, place(p.Time))
		for i := first; i < min(n, max(place(p.end()), first+1)); i++ {
			c := &list[i]
			c.Fill, c.Pressure = max(c.Fill, p.Fill), max(c.Pressure, p.Pressure)
			c.Level, c.Known = max(c.Level, p.Level), true
			if i == first {
				c.Drops += p.Drops
			}
		}
	}
	return list
}

// end is when the span of a point ends.
func (p Point) end() time.Time { return p.Time.Add(time.Duration(p.Seconds * float64(time.Second))) }
