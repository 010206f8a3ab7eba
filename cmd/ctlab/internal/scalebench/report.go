package scalebench

import (
	_ "embed"
	"fmt"
	"html/template"
	"io"
	"iter"
	"math"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"ctguard/agent/chart"
)

// Table writes points as a table in Markdown, each row as soon as it is known.
type Table struct {
	W   io.Writer
	Err error // the first one

	last string
}

func (t *Table) printf(format string, args ...any) {
	if t.Err == nil {
		_, t.Err = fmt.Fprintf(t.W, format, args...)
	}
}

// Point writes one row.
func (t *Table) Point(p Point) {
	if t.last == "" {
		t.printf("| what grows | size | limited | time to decide | CPU in an attack, of one core | CPU in calm | " +
			"to its rules, longest | peak memory |\n| --- | --- | --- | --- | --- | --- | --- | --- |\n")
	}
	name := p.Dimension
	if t.last == name {
		name = ""
	}
	t.last = p.Dimension
	if p.Fault != nil {
		reason, _, _ := strings.Cut(p.Fault.Error(), "\n")
		t.printf("| %s | %s | – | %s | | | | |\n", name, grouped(p.Size), reason)
		return
	}
	t.printf("| %s | %s | %d | %.1f s | %.1f %% | %.1f %% | %.0f ms | %.0f MiB |\n", name, grouped(p.Size), p.Limited,
		p.Decided.Seconds(), p.Attack, p.Calm, 1000*p.Rules.Seconds(), p.PeakMiB)
}

// grouped writes a number with its thousands apart.
func grouped(n int) string {
	s := strconv.Itoa(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + " " + s[i:]
	}
	return s
}

//go:embed chart.svg.tmpl
var source string

var picture = template.Must(template.New("chart").Parse(source))

// What is drawn of a point: how many times as much it is as at the smallest size.
var measures = []struct {
	of   func(Point) float64
	show func(Point) string
}{
	{func(p Point) float64 { return p.Decided.Seconds() }, func(p Point) string {
		return fmt.Sprintf("%.1f s", p.Decided.Seconds())
	}},
	{func(p Point) float64 { return p.Attack }, func(p Point) string { return fmt.Sprintf("%.0f %%", p.Attack) }},
	{func(p Point) float64 { return p.PeakMiB }, func(p Point) string { return fmt.Sprintf("%.0f MiB", p.PeakMiB) }},
}

type drawing struct {
	Under  string
	Panels []panel
}

type panel struct {
	Name, Linear string
	X            float64 // of the name
	Frame        chart.Plane
	Lines        []string // in the order of measures
	Ends         []chart.Place
	Sizes        []chart.Place
}

// Sizes of the chart, in pixels, and how far it goes up: a thousand times as much.
const (
	panelLeft, panelWidth, panelStep = 20, 140, 232
	panelTop, panelBottom            = 110, 310
	decades                          = 3
)

// Draw draws points, on logarithmic axes.
func Draw(w io.Writer, points []Point) error {
	var name unix.Utsname
	_ = unix.Uname(&name)
	d := drawing{Under: fmt.Sprintf("Linux %s, %d CPUs; as a multiple of the smallest size, both axes logarithmic",
		unix.ByteSliceToString(name.Release[:]), runtime.NumCPU())}
	points = slices.DeleteFunc(slices.Clone(points), func(p Point) bool { return p.Fault != nil })
	for first := 0; first < len(points); {
		last := first
		for last < len(points) && points[last].Dimension == points[first].Dimension {
			last++
		}
		d.Panels = append(d.Panels, newPanel(len(d.Panels), points[first:last]))
		first = last
	}
	return picture.Execute(w, d)
}

// newPanel draws what one dimension brings.
func newPanel(n int, points []Point) panel {
	least := points[0]
	times := func(v float64) float64 { return math.Log10(max(1, v)) }
	left := float64(panelLeft + n*panelStep)
	plane := chart.Plane{Left: left, Right: left + panelWidth, Top: panelTop, Bottom: panelBottom,
		To: max(1, times(float64(points[len(points)-1].Size)/float64(least.Size)))}
	line := func(of func(Point) float64) iter.Seq2[float64, float64] {
		return func(yield func(float64, float64) bool) {
			for _, p := range points {
				at := times(float64(p.Size) / float64(least.Size))
				if !yield(at, 100*times(of(p)/max(of(least), 1e-9))/decades) {
					return
				}
			}
		}
	}
	p := panel{Name: least.Dimension, X: left, Frame: plane,
		Linear: plane.Line(line(func(p Point) float64 { return float64(p.Size) }))}
	biggest := points[len(points)-1]
	for _, m := range measures {
		p.Lines = append(p.Lines, plane.Line(line(m.of)))
		p.Ends = append(p.Ends, chart.Place{X: plane.Right + 6, Y: plane.Y(100 * times(m.of(biggest)/m.of(least)) / decades),
			Text: m.show(least) + " → " + m.show(biggest)})
	}
	apart(p.Ends)
	for _, point := range points {
		p.Sizes = append(p.Sizes, chart.Place{X: plane.X(times(float64(point.Size) / float64(least.Size))),
			Y: plane.Bottom, Text: short(point.Size)})
	}
	return p
}

// apart moves texts that would stand on each other upwards.
func apart(places []chart.Place) {
	const height = 14
	for i := range places {
		for moved := true; moved; {
			moved = false
			for j := range i {
				if math.Abs(places[i].Y-places[j].Y) < height {
					places[i].Y, moved = places[j].Y-height, true
				}
			}
		}
	}
}

// short is a size for an axis.
func short(n int) string {
	switch {
	case n >= 1_000_000:
		return strings.TrimSuffix(fmt.Sprintf("%.1f", float64(n)/1e6), ".0") + "M"
	case n >= 1000:
		return fmt.Sprintf("%.0fk", float64(n)/1e3)
	}
	return strconv.Itoa(n)
}
