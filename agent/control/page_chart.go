package control

import (
	"fmt"
	"iter"
	"slices"
	"time"

	"ctguard/agent/chart"
	"ctguard/policy"
)

// Where the plane of a chart begins, what is right of it, and what is below it for the level and the time; in pixels.
const (
	chartLeft, chartTop, chartRight = 40, 16, 100
	levelHeight, hoursHeight        = 36, 20
)

// fillChart is fill over time as the template draws it: numbers, and texts that the template escapes.
type fillChart struct {
	Class         string
	Width, Height int
	Window        string
	Highest       float64
	LevelY        float64
	Grid, Marks   []chart.Place
	Hours, Events []chart.Place
	Drops         []chart.Place
	Levels        []box
	Runs          []run // a run for each stretch of the history without a hole
}

type (
	// box is a stretch of one level.
	box struct {
		X, Y, Width, Height float64
		Text                string
	}
	// run is the lines of one stretch, as points of SVG.
	run struct{ Fill, Pressure, Under string }
)

// windows are the spans that a chart may have.
var windows = []time.Duration{time.Minute, 3 * time.Minute, 5 * time.Minute, 15 * time.Minute, time.Hour,
	3 * time.Hour, 6 * time.Hour, 12 * time.Hour}

// windowOf is the span of a chart: the first that has all of the history.
func windowOf(points []Point) time.Duration {
	if len(points) > 0 {
		known := points[len(points)-1].end().Sub(points[0].Time)
		for _, w := range windows {
			if known <= w {
				return w
			}
		}
	}
	return windows[len(windows)-1]
}

// spanName writes the span of a chart for people.
func spanName(d time.Duration) string {
	switch {
	case d == time.Minute:
		return "minute"
	case d < time.Hour:
		return fmt.Sprintf("%.0f minutes", d.Minutes())
	case d == time.Hour:
		return "hour"
	}
	return fmt.Sprintf("%.0f hours", d.Hours())
}

// newChart draws the last so long. Along its plane run seconds, 0 at the end.
func newChart(class string, width, height int, s *Status, points []Point, events []NumberedEvent,
	window time.Duration) fillChart {
	plane := chart.Plane{Left: chartLeft, Top: chartTop, Right: float64(width - chartRight),
		Bottom: float64(height - levelHeight - hoursHeight), From: -window.Seconds()}
	c := fillChart{Class: class, Width: width, Height: height, Window: spanName(window),
		LevelY: plane.Bottom + levelHeight, Grid: plane.Grid(), Marks: marks(s.Steps, plane)}
	const pixels = 2 // a column
	columns := Columns(points, window, int(plane.Right-plane.Left)/pixels)
	x := func(column int) float64 { return plane.From * (1 - float64(column)/float64(len(columns))) }
	for i, column := range columns {
		c.Highest = max(c.Highest, column.Fill)
		if column.Drops > 0 {
			c.Drops = append(c.Drops, chart.Place{X: plane.X(x(i)), Y: chartTop - 8,
				Text: fmt.Sprintf("%d refused", column.Drops)})
		}
	}
	c.Runs = runs(columns, plane, x)
	c.Levels = levels(columns, len(s.Steps), func(i int) float64 { return plane.X(x(i)) }, c.LevelY)
	if len(points) == 0 {
		return c
	}
	end := points[len(points)-1].end()
	at := func(t time.Time) float64 { return plane.X(t.Sub(end).Seconds()) }
	for _, e := range events {
		if e.Kind == policy.LevelEvent && e.Time.After(end.Add(-window)) {
			c.Events = append(c.Events, chart.Place{X: at(e.Time), Y: plane.Bottom,
				Text: e.Time.Format(time.TimeOnly) + " " + eventName(e, false)})
		}
	}
	c.Hours = hours(end.Add(-window), window, at, float64(height-4))
	return c
}

// marks are where steps are entered. Of two that would be written over each other the higher one is named.
func marks(steps []policy.StepStatus, plane chart.Plane) []chart.Place {
	var list []chart.Place
	named := -plane.Top // where the last name stands
	for _, s := range slices.Backward(steps) {
		if s.Skipped != "" {
			continue
		}
		m := chart.Place{X: plane.Right, Y: plane.Y(s.Enter), Text: fmt.Sprintf("%g %s", s.Enter, s.Name)}
		if m.Y-named < 10 {
			m.Text = ""
		} else {
			named = m.Y
		}
		list = append(list, m)
	}
	return list
}

// runs draws fill and pressure, one line for each stretch without a hole.
func runs(columns []Column, plane chart.Plane, x func(int) float64) []run {
	var list []run
	for from := 0; from < len(columns); {
		to := from
		for to < len(columns) && columns[to].Known {
			to++
		}
		if to > from {
			line := func(value func(Column) float64) iter.Seq2[float64, float64] {
				return func(yield func(float64, float64) bool) {
					for i := from; i < to && yield(x(i), value(columns[i])); i++ {
					}
				}
			}
			fill := line(func(c Column) float64 { return c.Fill })
			list = append(list, run{plane.Line(fill), plane.Line(line(func(c Column) float64 { return c.Pressure })),
				plane.Under(fill)})
		}
		from = to + 1
	}
	return list
}

// levels draws the level as boxes that stand on a line, one for each stretch of the same level.
func levels(columns []Column, most int, x func(int) float64, bottom float64) []box {
	var list []box
	for from := 0; from < len(columns); {
		to := from + 1
		for to < len(columns) && columns[to].Level == columns[from].Level {
			to++
		}
		if level := columns[from].Level; level > 0 {
			height := float64((levelHeight - 6) * level / max(1, most))
			list = append(list, box{x(from), bottom - height, x(to) - x(from), height, fmt.Sprintf("level %d", level)})
		}
		from = to
	}
	return list
}

// hours writes four times below the plane, at round ones of the local clock.
func hours(begin time.Time, window time.Duration, at func(time.Time) float64, y float64) []chart.Place {
	_, offset := begin.Zone()
	zone := time.Duration(offset) * time.Second
	gap := window / 3
	if window >= 3*time.Hour {
		gap = gap.Truncate(time.Hour)
	}
	if gap < 2*time.Minute {
		gap = time.Minute
	}
	var list []chart.Place
	for t := begin.Add(zone).Truncate(gap).Add(gap - zone); t.Before(begin.Add(window)); t = t.Add(gap) {
		list = append(list, chart.Place{X: at(t), Y: y, Text: t.In(begin.Location()).Format("15:04")})
	}
	return list
}
