package measure

import (
	"encoding/json"
	"testing"
	"time"
)

const ms = time.Millisecond

// reqs makes one request each 10 ms from 0 to end, failed in [badFrom, badTo).
func reqs(end, badFrom, badTo time.Duration) []Request {
	var out []Request
	for at := time.Duration(0); at < end; at += 10 * ms {
		out = append(out, Request{At: at, Took: ms, OK: at < badFrom || at >= badTo})
	}
	return out
}

func value(t *testing.T, v *float64) float64 {
	t.Helper()
	if v == nil {
		t.Fatal("there is no figure")
	}
	return *v
}

func TestRequestJSON(t *testing.T) {
	want := []Request{{At: 5 * ms, Took: 3 * ms, OK: true}, {At: -ms, Took: 0}}
	b, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	if string(b) != "[[5000,3000,1],[-1000,0,0]]" {
		t.Errorf("json is %s", b)
	}
	var got []Request
	if err := json.Unmarshal(b, &got); err != nil {
		t.Fatal(err)
	}
	if len(got) != 2 || got[0] != want[0] || got[1] != want[1] {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestBuckets(t *testing.T) {
	got := Buckets(reqs(time.Second, 250*ms, 300*ms), 250*ms, time.Second)
	want := []Bucket{{0, 25, 25}, {0.25, 25, 20}, {0.5, 25, 25}, {0.75, 25, 25}}
	if len(got) != len(want) {
		t.Fatalf("%d buckets, want %d", len(got), len(want))
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("bucket %d is %v, want %v", i, got[i], want[i])
		}
	}
}

func TestSuccess(t *testing.T) {
	if Success(nil) != nil {
		t.Error("success of no requests is a figure")
	}
	if got := value(t, Success(reqs(time.Second, 0, 100*ms))); got != 90 {
		t.Errorf("success is %v, want 90", got)
	}
}

func TestQuantile(t *testing.T) {
	var rs []Request
	for i := 1; i <= 100; i++ {
		rs = append(rs, Request{Took: time.Duration(i) * ms, OK: true})
	}
	rs = append(rs, Request{Took: time.Hour})
	for q, want := range map[float64]float64{0: 1, 0.5: 50, 0.99: 99, 1: 100} {
		if got := value(t, Quantile(rs, q)); got != want {
			t.Errorf("quantile %v is %v, want %v", q, got, want)
		}
	}
	if Quantile([]Request{{Took: ms}}, 0.5) != nil {
		t.Error("quantile of no served request is a figure")
	}
}

func TestMedian(t *testing.T) {
	for want, values := range map[float64][]float64{0: nil, 3: {3}, 2: {9, 1, 2}, 5: {5, 1}} {
		if got := Median(values); got != want {
			t.Errorf("median of %v is %v, want %v", values, got, want)
		}
	}
}

func TestOutage(t *testing.T) {
	for name, tc := range map[string]struct {
		reqs []Request
		want time.Duration
	}{
		"none":          {reqs(time.Second, 0, 0), 0},
		"in the middle": {reqs(time.Second, 300*ms, 500*ms), 200 * ms},
		"to the end":    {reqs(time.Second, 300*ms, 2*time.Second), 700 * ms},
		"nothing":       {nil, 0},
	} {
		if got := Outage(tc.reqs, time.Second); got != tc.want {
			t.Errorf("%s: outage is %v, want %v", name, got, tc.want)
		}
	}
}

func TestRecovery(t *testing.T) {
	width := 250 * ms
	for name, tc := range map[string]struct {
		badFrom, badTo time.Duration
		want           float64 // -1: never
	}{
		"never fell":     {0, 0, 0},
		"after a second": {0, time.Second, 1},
		"never":          {time.Second, 10 * time.Second, -1},
		"too late":       {0, 9500 * ms, -1},
	} {
		got := Recovery(reqs(10*time.Second, tc.badFrom, tc.badTo), 0, 10*time.Second, width, 99)
		switch {
		case tc.want < 0 && got != nil:
			t.Errorf("%s: recovered after %v", name, *got)
		case tc.want >= 0 && (got == nil || *got != tc.want):
			t.Errorf("%s: recovery is %v, want %v", name, got, tc.want)
		}
	}
}

func fills(level int, values ...float64) []Sample {
	var out []Sample
	for i, v := range values {
		out = append(out, Sample{Seconds: float64(i), Fill: v, Level: level})
	}
	return out
}

func TestFillFigures(t *testing.T) {
	s := fills(-1, 10, 20, 96, 100, 50)
	if got := Peak(s, 0, 2); got != 20 {
		t.Errorf("peak is %v, want 20", got)
	}
	if got := Mean(s, 0, 2); got != 15 {
		t.Errorf("mean is %v, want 15", got)
	}
	if got := Mean(s, 9, 10); got != 0 {
		t.Errorf("mean of nothing is %v", got)
	}
	if got := SecondsAbove(s, 95); got != 2 {
		t.Errorf("%v seconds above 95 %%, want 2", got)
	}
}

func TestSettled(t *testing.T) {
	mark := func(float64) float64 { return 15 }
	if got := value(t, Settled(fills(-1, 10, 90, 90, 12, 11), 1, mark)); got != 2 {
		t.Errorf("settled after %v s, want 2", got)
	}
	if Settled(fills(-1, 10, 90, 12, 90), 1, mark) != nil {
		t.Error("settled, although fill rose again")
	}
	rising := func(seconds float64) float64 { return 10 * seconds }
	if got := value(t, Settled(fills(-1, 10, 20, 19, 30, 40), 1, rising)); got != 1 {
		t.Errorf("settled below a rising mark after %v s, want 1", got)
	}
	if Settled(fills(3, 10, 10, 10), 1, mark) != nil {
		t.Error("settled with the guard still at work")
	}
}
