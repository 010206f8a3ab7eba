package chart

import (
	"maps"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var plane = Plane{Left: 10, Top: 20, Right: 110, Bottom: 70, From: 5, To: 8}

// The corners of the plane are the ends of what is drawn on it; nothing is drawn above or below it.
func TestPlane(t *testing.T) {
	for _, one := range []struct{ v, percent, x, y float64 }{
		{5, 0, 10, 70}, {8, 100, 110, 20}, {6, 50, 43.3, 45}, {6.5, 130, 60, 20}, {6.5, -1, 60, 70},
	} {
		if x, y := plane.X(one.v), plane.Y(one.percent); x != one.x || y != one.y {
			t.Errorf("%g, %g %%: at %g, %g, want %g, %g", one.v, one.percent, x, y, one.x, one.y)
		}
	}
	want := []Place{{110, 70, "0"}, {110, 57.5, "25"}, {110, 45, "50"}, {110, 32.5, "75"}, {110, 20, "100"}}
	if diff := cmp.Diff(want, plane.Grid()); diff != "" {
		t.Error(diff)
	}
}

// A line goes through its pairs in their order, and what is under it closes at the bottom.
func TestLine(t *testing.T) {
	pairs := func(yield func(float64, float64) bool) {
		_ = yield(5, 100) && yield(6.5, 50) && yield(8, 0)
	}
	if got := plane.Line(pairs); got != "10,20 60,45 110,70" {
		t.Error(got)
	}
	if got := plane.Under(pairs); got != "10,70 10,20 60,45 110,70 110,70" {
		t.Error(got)
	}
	none := maps.All(map[float64]float64{})
	if line, under := plane.Line(none), plane.Under(none); !slices.Equal([]string{line, under}, []string{"", ""}) {
		t.Errorf("%q, %q", line, under)
	}
}
