package control

import (
	"encoding/json"
	"testing"
	"time"

	"ctguard/agent/control/controltest"
)

// moment is a status of a history: so long after a beginning.
func moment(begun time.Time, after time.Duration, fill float64, drops uint64) *Status {
	return &Status{Time: begun.Add(after), Fill: fill, Pressure: fill + 1, Level: int(fill) / 10, Count: int(fill * 10),
		Capacity: 1000, KernelDrops: drops}
}

// Each moment is in the history once, in order and without a hole, and a peak of a quarter of a second is still one
// hours later.
func TestHistory(t *testing.T) {
	var h history
	begun := time.Now()
	const peak = 3*time.Hour + 500*time.Millisecond
	last := 10 * time.Hour
	for at := time.Duration(0); at <= last; at += 250 * time.Millisecond {
		fill := 10.0
		if at == peak {
			fill = 95
		}
		h.add(moment(begun, at, fill, 100+uint64(at/(250*time.Millisecond))))
	}
	points := h.points(24 * time.Hour)
	var drops uint64
	for i, p := range points {
		if i > 0 {
			if end := points[i-1].Time.Add(time.Duration(points[i-1].Seconds * float64(time.Second))); !end.Equal(p.Time) {
				t.Fatalf("point %d begins at %s, the one before ends at %s", i, p.Time.Sub(begun), end.Sub(begun))
			}
		}
		drops += p.Drops
		if inside := !p.Time.After(begun.Add(peak)) && p.Time.Add(time.Minute).After(begun.Add(peak)); inside {
			if p.Fill != 95 || p.Pressure != 96 || p.Level != 9 || p.Count != 950 || p.Seconds != 60 {
				t.Errorf("the peak is %+v", p)
			}
		} else if p.Fill != 10 {
			t.Errorf("at %s fill is %v", p.Time.Sub(begun), p.Fill)
		}
	}
	if first, newest := points[0], points[len(points)-1]; !first.Time.Equal(begun) || newest.Seconds != 1 {
		t.Errorf("the history goes from %s to %+v", first.Time.Sub(begun), newest)
	}
	// What is finer than a coarse span that it begins in is left to that one: some drops may be in both.
	if all := uint64(last / (250 * time.Millisecond)); drops < all || drops > all+300 {
		t.Errorf("%d drops, want %d", drops, all)
	}
	if short := h.points(10 * time.Second); len(short) < 10 || len(short) > 12 {
		t.Errorf("the last ten seconds have %d points", len(short))
	}
}

// However long it runs, the history takes the room that it took from the beginning.
func TestHistoryIsBounded(t *testing.T) {
	var h history
	begun := time.Now()
	for at := time.Duration(0); at < 48*time.Hour; at += time.Second {
		h.add(moment(begun, at, 1, 0))
	}
	for i, g := range grains {
		if len(h.grains[i]) != g.kept || cap(h.grains[i]) != g.kept {
			t.Errorf("%d of %d points, want %d, of %s", len(h.grains[i]), cap(h.grains[i]), g.kept, g.span)
		}
	}
	points := h.points(48 * time.Hour)
	reach := points[len(points)-1].Time.Sub(points[0].Time)
	if reach < 11*time.Hour+58*time.Minute || reach > 12*time.Hour {
		t.Errorf("it reaches %s back", reach)
	}
}

// A clock that is set, and a kernel counter that begins again, put nothing into the past that was not there.
func TestHistoryAfterTheClockWasSet(t *testing.T) {
	var h history
	begun := time.Now()
	h.add(moment(begun, 0, 1, 50))
	h.add(moment(begun, -time.Hour, 2, 10))
	h.add(moment(begun, time.Second, 3, 12))
	points := h.points(time.Hour)
	if len(points) != 2 || points[0].Fill != 2 || points[1].Fill != 3 || points[0].Drops != 0 || points[1].Drops != 2 {
		t.Errorf("the history is %+v", points)
	}
}

// The control socket tells the history, all of it or its end.
func TestHistoryOverTheSocket(t *testing.T) {
	r := start(t, Options{}, usual)
	begun := time.Now()
	for i := range 120 {
		r.Publish(moment(begun, time.Duration(i)*time.Second, float64(i%50), 0))
	}
	for path, atLeast := range map[string]int{"/v1/history": 119, "/v1/history?last=10s": 10} {
		var points []Point
		if err := json.Unmarshal([]byte(controltest.MustAsk(t, r.socket, path, 200)), &points); err != nil {
			t.Fatal(err)
		}
		if len(points) < atLeast || len(points) > atLeast+2 || points[len(points)-1].Fill != 119%50 {
			t.Errorf("%s: %d points, the last %+v", path, len(points), points[len(points)-1])
		}
	}
	controltest.MustAsk(t, r.socket, "/v1/history?last=soon", 400)
}
