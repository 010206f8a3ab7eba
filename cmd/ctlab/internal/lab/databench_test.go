package lab

import (
	"math"
	"testing"

	"ctguard/agent/conntrack/conntracktest"
	"ctguard/cmd/ctlab/internal/round"
)

func TestPairs(t *testing.T) {
	var p Pairs
	for _, v := range [][2]uint64{{50, 100}, {90, 100}, {30, 40}} {
		p.add(round.Result{Done: v[0], Seconds: 1}, round.Result{Done: v[1], Seconds: 1, Failed: 2})
	}
	p.add(round.Result{Done: 7, Seconds: 1}, round.Result{Failed: 1, Seconds: 1}) // nothing to compare with
	p.finish()
	if p.With != 50 || p.None != 100 || p.Ratio != 0.75 || p.Least != 0.5 || p.Most != 0.9 {
		t.Errorf("pairs give %+v", p)
	}
	if p.FailedNone != 7 || p.FailedWith != 0 {
		t.Errorf("%d and %d failed, want 0 and 7", p.FailedWith, p.FailedNone)
	}
	var none Pairs
	if none.finish(); none.Ratio != 0 {
		t.Errorf("the ratio of nothing is %v", none.Ratio)
	}
}

// A packet costs 1 µs to send; blocked ones 1 µs more, limited ones 2, late ones 4.
func TestDropCost(t *testing.T) {
	d := dropCost([]float64{5e5, 5e5}, []float64{1e6 / 3, 1e6 / 3}, []float64{2e5, 2e5}, []float64{1e6, 1e6})
	for name, v := range map[string][2]float64{
		"blocked": {d.BlockedRatio, 2.5}, "limited": {d.LimitedRatio, 5.0 / 3},
		"blocked, net": {d.BlockedNet, 4}, "limited, net": {d.LimitedNet, 2},
	} {
		if math.Abs(v[0]-v[1]) > 1e-9 {
			t.Errorf("%s is %v, want %v", name, v[0], v[1])
		}
	}
}

// Where noise makes the early drop as fast as the ingress, there is no figure, and no infinite one.
func TestDropCostOfNoise(t *testing.T) {
	d := dropCost([]float64{1e6}, []float64{2e6}, []float64{2e5}, []float64{1e6})
	if d.BlockedNet != 0 || d.LimitedNet != 0 {
		t.Errorf("net ratios are %v and %v, want none", d.BlockedNet, d.LimitedNet)
	}
}

// Every way to drop drops all of the flood, and is gone afterwards.
func TestWaysToDrop(t *testing.T) {
	conntracktest.Privileged(t, "nft")
	var got []DropCost
	out, err := BenchData(t.Context(), BenchOptions{
		Rounds: 1, OnlyDrops: true, OnDrops: func(d DropCost) { got = append(got, d) },
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != 1 || out.Drops == nil || *out.Drops != got[0] {
		t.Fatalf("told of %v, result %v", got, out.Drops)
	}
	d := *out.Drops
	for name, rate := range map[string]float64{"blocked": d.Blocked, "limited": d.Limited, "late": d.Late,
		"ingress": d.Ingress} {
		if rate < 10_000 {
			t.Errorf("%s: %.0f packets a second", name, rate)
		}
	}
}
