package report

import (
	_ "embed"
	"fmt"
	"html/template"
	"io"
	"iter"
	"math"

	"ctguard/agent/chart"
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
	Top, Bottom, TextY     float64
	AttackX, AttackWidth   float64
	Fill, FillArea, Served string
	Level                  string
	Grid                   []chart.Place
	Seconds                []chart.Place
	LevelTicks             []chart.Place
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
	d.Height = int(d.Panels[len(d.Panels)-1].Bottom) + footer
	d.LegendY = panelTop - 8
	return svg.Execute(w, d)
}

func drawPanel(r *lab.Result, top int, span float64) panel {
	plane := chart.Plane{Left: plotLeft, Top: float64(top), Right: plotRight, Bottom: float64(top + panelHeight), To: span}
	onset := r.Scenario.Calm.Seconds()
	p := panel{
		Name: "guard: " + r.Scenario.Guard, Verdict: verdict(r),
		Top: plane.Top, Bottom: plane.Bottom, TextY: plane.Top - 8, Grid: plane.Grid(),
		AttackX:     plane.X(onset),
		AttackWidth: plane.X(onset+r.Scenario.AttackFor.Seconds()) - plane.X(onset),
		Fill:        plane.Line(fill(r)), FillArea: plane.Under(fill(r)), Served: plane.Line(served(r)),
	}
	for s := 0.0; s <= span; s += secondsStep(span) {
		p.Seconds = append(p.Seconds, chart.Place{X: plane.X(s), Y: plane.Bottom, Text: fmt.Sprintf("%.0f s", s)})
	}
	if isAgent(r) {
		top := max(levelTop, r.MaxLevel)
		p.Level = plane.Line(level(r, top))
		for l := 0; l <= top; l += 2 {
			p.LevelTicks = append(p.LevelTicks, chart.Place{X: plane.Right, Y: plane.Y(100 * float64(l) / float64(top)),
				Text: fmt.Sprint(l)})
		}
	}
	return p
}

// fill is the table's fill at each look at it.
func fill(r *lab.Result) iter.Seq2[float64, float64] {
	return func(yield func(float64, float64) bool) {
		for _, s := range r.Samples {
			if !yield(s.Seconds, s.Fill) {
				return
			}
		}
	}
}

// served is a step line: a bucket is a stretch, not a moment.
func served(r *lab.Result) iter.Seq2[float64, float64] {
	return func(yield func(float64, float64) bool) {
		for _, bk := range r.HTTP.Buckets {
			if bk.Asked == 0 {
				continue
			}
			share := 100 * float64(bk.Served) / float64(bk.Asked)
			if !yield(bk.Seconds, share) || !yield(min(bk.Seconds+bucketSeconds, duration(r)), share) {
				return
			}
		}
	}
}

// levelTop is the level drawn at the top of a panel, where the guard goes no higher.
const levelTop = 8

// level is a step line, as percent of the top one: a level lasts until the look that finds another.
func level(r *lab.Result, top int) iter.Seq2[float64, float64] {
	return func(yield func(float64, float64) bool) {
		before := 0.0
		for _, s := range r.Samples {
			now := 100 * float64(max(0, s.Level)) / float64(top)
			if now != before && !yield(s.Seconds, before) || !yield(s.Seconds, now) {
				return
			}
			before = now
		}
	}
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
