package control

import (
	"testing"
	"time"
)

// A column of the chart has the peak of its time, however short that was, and a coarse point is in all of its
// columns; what is not known is empty.
func TestColumns(t *testing.T) {
	begun := time.Unix(1000, 0)
	points := []Point{
		{Time: begun, Seconds: 20, Fill: 10, Pressure: 11, Level: 1, Drops: 5},
		{Time: begun.Add(20 * time.Second), Seconds: 1, Fill: 90, Level: 7},
		{Time: begun.Add(21 * time.Second), Seconds: 1, Fill: 20},
		{Time: begun.Add(22 * time.Second), Seconds: 8, Fill: 30},
	}
	got := Columns(points, 40*time.Second, 4) // the first ten seconds are not known
	want := []Column{{}, {10, 11, 1, 5, true}, {10, 11, 1, 0, true}, {90, 0, 7, 0, true}}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("column %d is %+v, want %+v", i, got[i], want[i])
		}
	}
	if empty := Columns(nil, time.Minute, 3); len(empty) != 3 || empty[0].Known {
		t.Errorf("without history: %v", empty)
	}
}
