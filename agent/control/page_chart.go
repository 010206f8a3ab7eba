package control

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"ctguard/policy"
)

// Where the plane of a chart begins, what is right of it, and what is below it for the level and the time; in pixels.
const (
	chartLeft, chartTop, chartRight = 40, 16, 100
	levelHeight, hoursHeight        = 36, 20
)

// chart is fill over time as the template draws it: numbers, and texts that the template escapes.
type chart struct {
	Class         string
	Width, Height int
	Window        string
	Highest       float64
	LevelY        int
	Grid, Marks   []place
	Hours, Events []place
	Drops         []place
	Levels        []box
	Runs          []run // a run for each stretch of the history without a hole
}

type (
	// place is a point of the plane and what stands there.
	place struct {
		X, Y int
		Text string
	}
	// box is a stretch of one level.
	box struct {
		X, Y, Width, Height int
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

// newChart draws the last so long.
func newChart(class string, width, height int, s *Status, points []Point, events []NumberedEvent,
	window time.Duration) chart {
	c := chart{Class: class, Width: width, Height: height, Window: spanName(window)}
	right, bottom := width-chartRight, height-levelHeight-hoursHeight
	c.LevelY = bottom + levelHeight
	y := func(percent float64) int {
		return chartTop + int(float64(bottom-chartTop)*(1-min(100, max(0, percent))/100)+0.5)
	}
	for _, percent := range []float64{0, 25, 50, 75, 100} {
		c.Grid = append(c.Grid, place{right, y(percent), fmt.Sprint(percent)})
	}
	c.Marks = marks(s.Steps, right, y)
	const pixels = 2 // a column
	columns := Columns(points, window, (right-chartLeft)/pixels)
	x := func(column int) int { return chartLeft + column*pixels }
	for i, column := range columns {
		c.Highest = max(c.Highest, column.Fill)
		if column.Drops > 0 {
			c.Drops = append(c.Drops, place{x(i), chartTop - 8, fmt.Sprintf("%d refused", column.Drops)})
		}
	}
	c.Runs = runs(columns, x, y, bottom)
	c.Levels = levels(columns, len(s.Steps), x, bottom+levelHeight)
	if len(points) == 0 {
		return c
	}
	begin := points[len(points)-1].end().Add(-window)
	at := func(t time.Time) int {
		return chartLeft + int(float64(right-chartLeft)*float64(t.Sub(begin))/float64(window))
	}
	for _, e := range events {
		if e.Kind == policy.LevelEvent && e.Time.After(begin) {
			c.Events = append(c.Events, place{at(e.Time), bottom, e.Time.Format(time.TimeOnly) + " " + eventName(e, false)})
		}
	}
	c.Hours = hours(begin, window, at, height-4)
	return c
}

// marks are where steps are entered. Of two that would be written over each other the higher one is named.
func marks(steps []policy.StepStatus, x int, y func(float64) int) []place {
	var list []place
	named := -chartTop // where the last name stands
	for _, s := range slices.Backward(steps) {
		if s.Skipped != "" {
			continue
		}
		m := place{x, y(s.Enter), fmt.Sprintf("%g %s", s.Enter, s.Name)}
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
func runs(columns []Column, x func(int) int, y func(float64) int, bottom int) []run {
	var list []run
	var fill, pressure strings.Builder
	first := 0
	for i := range len(columns) + 1 {
		if i < len(columns) && columns[i].Known {
			if fill.Len() == 0 {
				first = i
			}
			fmt.Fprintf(&fill, "%d,%d ", x(i), y(columns[i].Fill))
			fmt.Fprintf(&pressure, "%d,%d ", x(i), y(columns[i].Pressure))
			continue
		}
		if fill.Len() > 0 {
			under := fmt.Sprintf("%d,%d %s%d,%d", x(first), bottom, fill.String(), x(i-1), bottom)
			list = append(list, run{strings.TrimSpace(fill.String()), strings.TrimSpace(pressure.String()), under})
			fill.Reset()
			pressure.Reset()
		}
	}
	return list
}

// levels draws the level as boxes that stand on a line, one for each stretch of the same level.
func levels(columns []Column, most int, x func(int) int, bottom int) []box {
	var list []box
	for from := 0; from < len(columns); {
		to := from + 1
		for to < len(columns) && columns[to].Level == columns[from].Level {
			to++
		}
		if level := columns[from].Level; level > 0 {
			height := (levelHeight - 6) * level / max(1, most)
			list = append(list, box{x(from), bottom - height, x(to) - x(from), height, fmt.Sprintf("level %d", level)})
		}
		from = to
	}
	return list
}

// hours writes four times below the plane, at round ones of the local clock.
func hours(begin time.Time, window time.Duration, at func(time.Time) int, y int) []place {
	_, offset := begin.Zone()
	zone := time.Duration(offset) * time.Second
	gap := window / 3
	if window >= 3*time.Hour {
		gap = gap.Truncate(time.Hour)
	}
	if gap < 2*time.Minute {
		gap = time.Minute
	}
	var list []place
	for t := begin.Add(zone).Truncate(gap).Add(gap - zone); t.Before(begin.Add(window)); t = t.Add(gap) {
		list = append(list, place{at(t), y, t.In(begin.Location()).Format("15:04")})
	}
	return list
}
