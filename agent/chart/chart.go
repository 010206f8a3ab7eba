package chart

import (
	"fmt"
	"iter"
	"math"
	"strings"
)

// Plane is a rectangle of a picture, in pixels: from left to right From to To of whatever runs along it, from the
// bottom to the top 0 to 100 percent.
type Plane struct {
	Left, Top, Right, Bottom float64
	From, To                 float64
}

// Place is a point of the plane and what stands there.
type Place struct {
	X, Y float64
	Text string
}

// X is where a value along the plane is, to a tenth of a pixel.
func (p Plane) X(v float64) float64 {
	return tenth(p.Left + (p.Right-p.Left)*(v-p.From)/(p.To-p.From))
}

// Y is where so many percent are, to a tenth of a pixel: never outside the plane.
func (p Plane) Y(percent float64) float64 {
	return tenth(p.Bottom - (p.Bottom-p.Top)*min(100, max(0, percent))/100)
}

// Grid is the quarters of the plane's height, at its right edge.
func (p Plane) Grid() []Place {
	var list []Place
	for _, percent := range []float64{0, 25, 50, 75, 100} {
		list = append(list, Place{p.Right, p.Y(percent), fmt.Sprint(percent)})
	}
	return list
}

// Line is the points of a polyline through pairs of a value along the plane and percent.
func (p Plane) Line(pairs iter.Seq2[float64, float64]) string {
	var b strings.Builder
	for v, percent := range pairs {
		b.WriteString(point(p.X(v), p.Y(percent)))
	}
	return strings.TrimSpace(b.String())
}

// Under is the points of the polygon between a line and the bottom.
func (p Plane) Under(pairs iter.Seq2[float64, float64]) string {
	first, last := math.NaN(), math.NaN()
	for v := range pairs {
		if math.IsNaN(first) {
			first = v
		}
		last = v
	}
	if math.IsNaN(first) {
		return ""
	}
	return point(p.X(first), p.Bottom) + p.Line(pairs) + " " + strings.TrimSpace(point(p.X(last), p.Bottom))
}

func point(x, y float64) string { return fmt.Sprintf("%g,%g ", x, y) }

func tenth(v float64) float64 { return math.Round(10*v) / 10 }
