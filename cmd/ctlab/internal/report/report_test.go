package report

import (
	"bytes"
	"encoding/xml"
	"errors"
	"flag"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"ctguard/cmd/ctlab/internal/lab"
	"ctguard/cmd/ctlab/internal/measure"
)

var update = flag.Bool("update", false, "write the golden files")

// results are two runs as they could be: a table that fills, and one that is kept.
func results() []*lab.Result {
	return []*lab.Result{example("none", false), example("ctguard", true)}
}

func example(guard string, kept bool) *lab.Result {
	r := &lab.Result{
		Scenario: lab.Scenario{
			Topology: "server", Attack: "handshake", Guard: guard, Calm: 2 * time.Second, AttackFor: 8 * time.Second,
			After: 2 * time.Second, Capacity: 65536, Background: 32000, HTTPRate: 200,
		},
		Fill: lab.Fill{Calm: 47, Peak: 100, End: 100, SecondsAbove: 3.5, Drops: 8123},
		HTTP: lab.Service{Calm: figure(100), Onset: figure(100), During: figure(60.04), After: figure(1.2),
			P50: figure(0.41), P99: figure(7), LongestOutage: 1.3},
		Lasting: lab.Lasting{Opened: 40, SessionAlive: true},
	}
	r.OrdinaryKept = figure(100)
	r.Flood.AskedRate, r.Flood.AchievedRate = 5000, 4998.7
	if kept {
		r.Fill = lab.Fill{Calm: 47, Peak: 71, End: 50}
		r.HTTP.During, r.HTTP.After, r.HTTP.LongestOutage = figure(100), figure(100), 0
		r.SecondsToServed, r.SecondsToBaseline = figure(0), figure(1.5)
		r.Guard = lab.Cost{CPUSeconds: 0.2, CPUPercent: 1.7, PeakRSSKiB: 20480}
		r.MaxLevel = 2
	}
	for i := range 121 {
		s := float64(i) / 10
		m := measure.Sample{Seconds: s, Fill: min(100, 47+max(0, s-2)*9), Level: -1}
		if kept {
			m.Fill, m.Level = min(71, m.Fill), 0
			if m.Fill >= 70 {
				m.Level = 2
			}
		}
		r.Samples = append(r.Samples, m)
	}
	for i := range 48 {
		b := measure.Bucket{Seconds: float64(i) / 4, Asked: 50, Served: 50}
		if !kept && b.Seconds > 7.8 {
			b.Served = 1
		}
		r.HTTP.Buckets = append(r.HTTP.Buckets, b)
	}
	return r
}

func figure(v float64) *float64 { return &v }

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, got, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s differs (run with -update to accept):\n%s", name, got)
	}
}

func TestText(t *testing.T) {
	var b bytes.Buffer
	if err := Text(&b, results()); err != nil {
		t.Fatal(err)
	}
	golden(t, "table.txt", b.Bytes())
}

func TestChart(t *testing.T) {
	var b bytes.Buffer
	if err := Chart(&b, results()); err != nil {
		t.Fatal(err)
	}
	golden(t, "chart.txt", b.Bytes())
}

func TestSVG(t *testing.T) {
	var b bytes.Buffer
	if err := SVG(&b, results()); err != nil {
		t.Fatal(err)
	}
	golden(t, "chart.svg", b.Bytes())
	dec := xml.NewDecoder(&b)
	for {
		if _, err := dec.Token(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatalf("the chart is not well-formed: %v", err)
		}
	}
}

func TestData(t *testing.T) {
	var b bytes.Buffer
	d := Data{W: &b}
	p := lab.Pairs{With: 95_000, None: 100_000, Ratio: 0.95, Least: 0.9, Most: 1.01}
	bulk := lab.Pairs{With: 30_000, None: 38_000, Ratio: 0.8, Least: 0.8, Most: 0.8, FailedWith: 3}
	d.Level(lab.DataLevel{Topology: "server", Limit: "two empty hooks", UDP: p, TCP: p, Bulk: bulk})
	d.Level(lab.DataLevel{Topology: "server", UDP: p, TCP: p, Bulk: bulk})
	d.Level(lab.DataLevel{Topology: "nat-gateway", Level: 2, Step: "notrack", Skipped: "a gateway", UDP: p, TCP: p})
	d.Drops(lab.DropCost{Blocked: 6e5, Limited: 5e5, Late: 2e5, Ingress: 1e6, BlockedRatio: 3, LimitedRatio: 2.5,
		BlockedNet: 6, LimitedNet: 4})
	if d.Err != nil {
		t.Fatal(d.Err)
	}
	golden(t, "data.md", b.Bytes())
}

func TestNoResults(t *testing.T) {
	if err := SVG(io.Discard, nil); err == nil {
		t.Error("a chart of nothing was drawn")
	}
	if err := Chart(io.Discard, []*lab.Result{{}}); err != nil {
		t.Errorf("an empty result: %v", err)
	}
}
