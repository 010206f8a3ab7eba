package main

import (
	_ "embed"
	"fmt"
	"os"
	"strings"
	"text/template"

	"ctguard/agent/record"
)

//go:embed replay.svg.tmpl
var replayTemplate string

// The chart's plane, in pixels.
const (
	chartLeft, chartTop     = 50, 30
	chartWidth, chartHeight = 900, 260
)

// writeReplayChart draws fill and pressure in percent, and the levels recorded and replayed.
func writeReplayChart(path string, ticks []record.Tick) error {
	if len(ticks) == 0 {
		return fmt.Errorf("draw %s: the recording is empty", path)
	}
	start := ticks[0].Observation.Time
	span := max(ticks[len(ticks)-1].Observation.Time.Sub(start).Seconds(), 1)
	line := func(value func(record.Tick) float64) string {
		var points strings.Builder
		for _, t := range ticks {
			x := chartLeft + chartWidth*t.Observation.Time.Sub(start).Seconds()/span
			y := chartTop + chartHeight*(1-min(1, value(t)))
			fmt.Fprintf(&points, "%.1f,%.1f ", x, y)
		}
		return points.String()
	}
	most := 1
	for _, t := range ticks {
		most = max(most, t.Recorded, t.Decision.Posture.Level)
	}
	var out strings.Builder
	err := template.Must(template.New("chart").Parse(replayTemplate)).Execute(&out, map[string]any{
		"Left": chartLeft, "Top": chartTop, "Width": chartWidth, "Height": chartHeight,
		"Right": chartLeft + chartWidth, "Bottom": chartTop + chartHeight, "Most": most, "Seconds": fmt.Sprintf("%.0f", span),
		"Fill":     line(func(t record.Tick) float64 { return t.Decision.Fill / 100 }),
		"Pressure": line(func(t record.Tick) float64 { return t.Decision.Pressure / 100 }),
		"Recorded": line(func(t record.Tick) float64 { return float64(t.Recorded) / float64(most) }),
		"Replayed": line(func(t record.Tick) float64 { return float64(t.Decision.Posture.Level) / float64(most) }),
	})
	if err != nil {
		return fmt.Errorf("draw %s: %w", path, err)
	}
	return os.WriteFile(path, []byte(out.String()), 0o644)
}
