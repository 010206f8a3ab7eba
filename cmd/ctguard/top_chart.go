package main

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"ctguard/agent/control"
	"ctguard/policy"
)

// glyphs are what charts and bars are drawn with.
type glyphs struct {
	eighths []string // parts of a cell, filled from below; the last is full
	mark    string
	bar     string
	usual   string // where the usual holding ends
}

var (
	unicodeGlyphs = glyphs{strings.Split("▁▂▃▄▅▆▇█", ""), "┈", "█", "│"}
	asciiGlyphs   = glyphs{[]string{".", "_", "o", "#"}, "-", "=", "|"}
)

// glyphsFor returns those that a terminal of this locale shows; see locale(7) for the order.
func glyphsFor(getenv func(string) string) glyphs {
	for _, name := range []string{"LC_ALL", "LC_CTYPE", "LANG"} {
		if value := strings.ToUpper(getenv(name)); value != "" {
			if strings.Contains(value, "UTF-8") || strings.Contains(value, "UTF8") {
				return unicodeGlyphs
			}
			return asciiGlyphs
		}
	}
	return asciiGlyphs
}

// chart draws fill over time with the marks of the steps at its right, and below it the level of each column.
func (m *topView) chart(width, rows int) []string {
	labels := markLabels(m.status.Steps, rows)
	side := len("last 15m")
	for _, l := range labels {
		side = max(side, len(l))
	}
	const axis = 5
	n := max(1, width-axis-1-side)
	cols := control.Columns(m.points, topWindows[m.window], n)
	lines := make([]string, 0, rows+2)
	for row := range rows {
		line := strings.Repeat(" ", axis)
		if row == 0 {
			line = " 100 "
		}
		var cells strings.Builder
		for _, c := range cols {
			cells.WriteString(m.cell(c, row, rows, labels[row] != ""))
		}
		lines = append(lines, line+m.shade(cells.String(), 100*float64(rows-row)/float64(rows))+" "+dim(labels[row]))
	}
	levels, refused := "", ""
	for _, c := range cols {
		levels += levelGlyph(c)
		if c.Drops > 0 {
			refused += "!"
		} else {
			refused += " "
		}
	}
	lines = append(lines, dim("level")+levels+" "+dim("last "+short(topWindows[m.window])))
	if strings.Contains(refused, "!") {
		lines = append(lines, "drops"+red(refused)+" "+red("refused"))
	}
	return lines
}

// cell draws one cell: what of the fill is in it, or the mark that goes through it.
func (m *topView) cell(c control.Column, row, rows int, marked bool) string {
	parts := len(m.glyphs.eighths)
	filled := int(c.Fill/100*float64(rows*parts)+0.5) - (rows-1-row)*parts
	switch {
	case c.Known && c.Fill > 0 && row == rows-1 && filled < 1:
		return m.glyphs.eighths[0] // a little is not nothing
	case filled >= 1:
		return m.glyphs.eighths[min(filled, parts)-1]
	case marked:
		return m.glyphs.mark
	}
	return " "
}

// levelGlyph is the level of a column; a dot for level 0.
func levelGlyph(c control.Column) string {
	switch {
	case !c.Known:
		return " "
	case c.Level == 0:
		return "."
	case c.Level > 9:
		return "+"
	}
	return fmt.Sprint(c.Level)
}

// markLabels names the steps at the row where each is entered; those that are skipped have no mark.
func markLabels(steps []policy.StepStatus, rows int) []string {
	labels := make([]string, rows)
	for _, s := range slices.Backward(steps) {
		if s.Skipped != "" {
			continue
		}
		row := max(0, min(rows-1, int(float64(rows)*(1-s.Enter/100))))
		if labels[row] != "" {
			continue // the higher one stands for both
		}
		labels[row] = fmt.Sprintf("%g %s", s.Enter, s.Name)
	}
	return labels
}

// short writes a duration without the zeros at its end: 5m, not 5m0s.
func short(d time.Duration) string {
	text := d.Round(time.Second).String()
	if strings.HasSuffix(text, "m0s") {
		text = strings.TrimSuffix(text, "0s")
	}
	if strings.HasSuffix(text, "h0m") {
		text = strings.TrimSuffix(text, "0m")
	}
	return text
}
