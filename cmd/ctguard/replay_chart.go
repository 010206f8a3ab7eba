package main

import (
	_ "embed"
	"fmt"
	"os"
	"strings"
	"text/template"

	"ctguard/agent/chart"
	"ctguard/agent/record"
)

//go:embed replay.svg.tmpl
var replayTemplate string

// writeReplayChart draws fill and pressure in percent, and the levels recorded and replayed.
func writeReplayChart(path string, ticks []record.Tick) error {
	if len(ticks) == 0 {
		return fmt.Errorf("draw %s: the recording is empty", path)
	}
	start := ticks[0].Observation.Time
	plane := chart.Plane{Left: 50, Top: 30, Right: 950, Bottom: 290,
		To: max(ticks[len(ticks)-1].Observation.Time.Sub(start).Seconds(), 1)}
	line := func(percent func(record.Tick) float64) string {
		return plane.Line(func(yield func(float64, float64) bool) {
			for _, t := range ticks {
				if !yield(t.Observation.Time.Sub(start).Seconds(), percent(t)) {
					return
				}
			}
		})
	}
	most := 1
	for _, t := range ticks {
		most = max(most, t.Recorded, t.Decision.Posture.Level)
	}
	ofMost := func(level int) float64 { return 100 * float64(level) / float64(most) }
	var out strings.Builder
	err := template.Must(template.New("chart").Parse(replayTemplate)).Execute(&out, map[string]any{
		"Plane": plane, "Width": plane.Right - plane.Left, "Height": plane.Bottom - plane.Top,
		"Most": most, "Seconds": fmt.Sprintf("%.0f", plane.To),
		"Fill":     line(func(t record.Tick) float64 { return t.Decision.Fill }),
		"Pressure": line(func(t record.Tick) float64 { return t.Decision.Pressure }),
		"Recorded": line(func(t record.Tick) float64 { return ofMost(t.Recorded) }),
		"Replayed": line(func(t record.Tick) float64 { return ofMost(t.Decision.Posture.Level) }),
	})
	if err != nil {
		return fmt.Errorf("draw %s: %w", path, err)
	}
	return os.WriteFile(path, []byte(out.String()), 0o644)
}
