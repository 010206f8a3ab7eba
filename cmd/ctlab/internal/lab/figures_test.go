package lab

import (
	"testing"
	"time"

	"ctguard/cmd/ctlab/internal/flood"
	"ctguard/cmd/ctlab/internal/measure"
	"ctguard/cmd/ctlab/internal/workload"
)

// recorded is a run of 2 s calm, 4 s attack and 2 s after: new connections fail from one and a
// half seconds after the onset until half a second after the attack.
func recorded() (*run, outcome) {
	r := &run{
		sc: Scenario{
			Attack: "handshake", Guard: "none", Calm: 2 * time.Second, AttackFor: 4 * time.Second,
			Capacity: 1000, Background: 100,
		},
		site:    &site{},
		guard:   passive{},
		sampler: &sampler{},
	}
	r.attack, _ = attackNamed("handshake")
	for i := range 81 {
		s := float64(i) / 10
		m := measure.Sample{Seconds: s, Fill: 10, Level: -1}
		if s >= 3 && s < 7 {
			m.Fill, m.Drops = 100, 5
		}
		r.sampler.samples = append(r.sampler.samples, m)
	}
	out := outcome{flood: flood.Result{Sent: 800, Seconds: 4}, ordinaryBefore: 100, ordinaryAfter: 40}
	for at := time.Duration(0); at < 8*time.Second; at += 10 * time.Millisecond {
		bad := at >= 3500*time.Millisecond && at < 6500*time.Millisecond
		out.users.HTTP = append(out.users.HTTP, measure.Request{At: at, Took: time.Millisecond, OK: !bad})
	}
	out.users = workload.Result{HTTP: out.users.HTTP, Lasting: 3, Lost: 1, Session: true}
	return r, out
}

func TestFigures(t *testing.T) {
	r, out := recorded()
	res := r.result(out)
	for name, tc := range map[string]struct {
		got  *float64
		want float64
	}{
		"calm":                    {res.HTTP.Calm, 100},
		"first second":            {res.HTTP.Onset, 100},
		"during":                  {res.HTTP.During, 100 * 50.0 / 300},
		"after":                   {res.HTTP.After, 75},
		"ordinary users' entries": {res.OrdinaryKept, 40},
		"back to baseline":        {res.SecondsToBaseline, 1},
		"outage":                  {&res.HTTP.LongestOutage, 3},
		"seconds above 95 %":      {&res.Fill.SecondsAbove, 4},
		"peak":                    {&res.Fill.Peak, 100},
		"calm fill":               {&res.Fill.Calm, 10},
		"rate":                    {&res.Flood.AchievedRate, 200},
	} {
		if tc.got == nil || *tc.got < tc.want-0.01 || *tc.got > tc.want+0.01 {
			t.Errorf("%s is %v, want %v", name, tc.got, tc.want)
		}
	}
	if res.SecondsToServed != nil {
		t.Errorf("recovered %v s after the onset, want never", *res.SecondsToServed)
	}
	if res.UDP.During != nil {
		t.Error("there is a figure of a service that nobody asked")
	}
	if res.LeftBehind != nil {
		t.Error("settings without a stop have left something behind")
	}
}

// What the clients leave in the table themselves is no damage, and it stops growing.
func TestBaselineGrowsWithTheClients(t *testing.T) {
	r := &run{sc: Scenario{Capacity: 10000, Background: 1000, HTTPRate: 10, UDPRate: 10}}
	for seconds, want := range map[float64]float64{0: 10, 10: 12, 1000: 10 + 12 + 3} {
		if got := r.baseline(seconds) - baselineMargin; got < want-0.01 || got > want+0.01 {
			t.Errorf("baseline after %v s is %v, want %v", seconds, got, want)
		}
	}
}
