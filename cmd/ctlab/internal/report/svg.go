package report

import (
	_ "embed"
	"fmt"
	"html/template"
	"io"
	"math"
	"strings"

	"ctguard/cmd/ctlab/internal/lab"
)

// Sizes of the chart, in pixels. A README is about 900 wide.
const (
	svgWidth    = 900
	panelTop    = 78
	panelHeight = 150
	panelGap    = 52
	plotLeft    = 56
	plotRight   = svgWidth - 70
	footer      = 34
)

//go:embed chart.svg.tmpl
var svgTemplate string

var svg = template.Must(template.New("chart").Parse(svgTemplate))

type drawing struct {
	Width, Height int
	Left, Right   int
	Title, Under  string
	LegendY       int
	Levels        bool
	Panels        []panel
}

type panel struct {
	Name, Verdict          string
	Top, Bottom, TextY     int
	AttackX, AttackW       string
	Fill, FillArea, Served string
	Level                  string
	Grid                   []tick
	Seconds                []tick
	LevelTicks             []tick
}

// tick is a grid line: where, and what stands beside it.
type tick struct {
	At    string
	Label string
}

// SVG draws one attack: a panel for each result, all on the same time axis.
func SVG(w io.Writer, results []*lab.Result) error {
	if len(results) == 0 {
		return fmt.Errorf("draw chart: no results")
	}
	span := 0.0
	for _, r := range results {
		span = max(span, duration(r))
	}
	first := results[0].Scenario
	d := drawing{
		Width: svgWidth, Left: plotLeft, Right: plotRight,
		Title: lab.AttackSummary(first.Attack),
		Under: fmt.Sprintf("table of %d entries, %d of them held by ordinary users; "+
			"clients ask for %d new connections a second",
			first.Capacity, first.Background, first.HTTPRate),
	}
	for i, r := range results {
		d.Panels = append(d.Panels, drawPanel(r, panelTop+24+i*(panelHeight+panelGap), span))
		d.Levels = d.Levels || isAgent(r)
	}
	d.Height = d.Panels[len(d.Panels)-1].Bottom + footer
	d.LegendY = panelTop - 8
	return svg.Execute(w, d)
}

func drawPanel(r *lab.Result, top int, span float64) panel {
	p := panel{
		Name: "guard: " + r.Scenario.Guard, Verdict: verdict(r),
		Top: top, Bottom: top + panelHeight, TextY: top - 8,
	}
	x := func(s float64) float64 { return plotLeft + s/span*(plotRight-plotLeft) }
	y := func(percent float64) float64 { return float64(p.Bottom) - percent/100*panelHeight }

	onset := r.Scenario.Calm.Seconds()
	p.AttackX, p.AttackW = num(x(onset)), num(x(onset+r.Scenario.AttackFor.Seconds())-x(onset))
	for _, v := range []float64{0, 25, 50, 75, 100} {
		p.Grid = append(p.Grid, tick{num(y(v)), fmt.Sprintf("%.0f", v)})
	}
	for s := 0.0; s <= span; s += secondsStep(span) {
		p.Seconds = append(p.Seconds, tick{num(x(s)), fmt.Sprintf("%.0f s", s)})
	}
	p.Fill, p.FillArea = fillPath(r, x, y)
	p.Served = servedPath(r, x, y)
	if isAgent(r) {
		p.Level, p.LevelTicks = levelPath(r, x, y)
	}
	return p
}

func fillPath(r *lab.Result, x, y func(float64) float64) (line, area string) {
	var pts []string
	for _, s := range r.Samples {
		pts = append(pts, num(x(s.Seconds))+","+num(y(min(100, s.Fill))))
	}
	if len(pts) == 0 {
		return "", ""
	}
	line = "M" + strings.Join(pts, "L")
	return line, line + "L" + num(x(duration(r))) + "," + num(y(0)) + "L" + num(x(0)) + "," + num(y(0)) + "Z"
}

// servedPath is a step line: a bucket is a stretch, not a moment.
func servedPath(r *lab.Result, x, y func(float64) float64) string {
	var b strings.Builder
	for _, bk := range r.HTTP.Buckets {
		if bk.Asked == 0 {
			continue
		}
		v := num(y(100 * float64(bk.Served) / float64(bk.Asked)))
		op := "L"
		if b.Len() == 0 {
			op = "M"
		}
		to := min(bk.Seconds+bucketSeconds, duration(r))
		b.WriteString(op + num(x(bk.Seconds)) + "," + v + "L" + num(x(to)) + "," + v)
	}
	return b.String()
}

// levelTop is the level drawn at the top of a panel, where the guard goes no higher.
const levelTop = 8

func levelPath(r *lab.Result, x, y func(float64) float64) (string, []tick) {
	top := max(levelTop, r.MaxLevel)
	at := func(level int) string { return num(y(100 * float64(level) / float64(top))) }
	var b strings.Builder
	for i, s := range r.Samples {
		op := "H" + num(x(s.Seconds)) + "V" + at(max(0, s.Level))
		if i == 0 {
			op = "M" + num(x(s.Seconds)) + "," + at(max(0, s.Level))
		}
		b.WriteString(op)
	}
	var ticks []tick
	for l := 0; l <= top; l += 2 {
		ticks = append(ticks, tick{at(l), fmt.Sprint(l)})
	}
	return b.String(), ticks
}

// verdict is a panel in a sentence.
func verdict(r *lab.Result) string {
	s := fmt.Sprintf("%s of new connections served under attack, %s after it", percent(r.HTTP.During),
		percent(r.HTTP.After))
	if isAgent(r) {
		s += fmt.Sprintf("; agent: %.1f %% of a core, %d MiB", r.Guard.CPUPercent, r.Guard.PeakRSSKiB/1024)
	}
	return s
}

func secondsStep(span float64) float64 {
	for _, s := range []float64{1, 2, 5, 10, 30, 60} {
		if span/s <= 12 {
			return s
		}
	}
	return math.Ceil(span / 10)
}

func num(v float64) string { return fmt.Sprintf("%.1f", v) }
