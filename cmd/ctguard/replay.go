package main

import (
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"ctguard/agent/control"
	"ctguard/agent/record"
	"ctguard/policy"
)

// replayReport is what `ctguard replay --json` prints. Field names are stable.
type replayReport struct {
	Ticks   int            `json:"ticks"`
	Seconds float64        `json:"seconds"` // from the first tick to the last
	Peak    float64        `json:"peak_fill_percent"`
	Differ  int            `json:"differing_ticks"` // at which the level was not the one that was recorded
	Events  []policy.Event `json:"events"`
}

func (p *program) replayCommand() *cobra.Command {
	var svg string
	var asJSON bool
	c := &cobra.Command{
		Use:     "replay FILE",
		Example: "  ctguard replay attack.gz",
		Short:   "run a recording through the ladder; with --config show what another configuration would have done",
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			var other *policy.Config
			if p.given {
				conf, err := p.config()
				if err != nil {
					return err
				}
				other = &conf.Policy
			}
			f, err := os.Open(args[0])
			if err != nil {
				return usage(err, "ctguard run --record FILE makes one")
			}
			defer f.Close()
			var ticks []record.Tick
			if err := record.Replay(f, other, func(t record.Tick) {
				t.Observation.Census = nil // not needed any more, and large
				ticks = append(ticks, t)
			}); err != nil {
				return err
			}
			text := func(w io.Writer) { printReplay(w, ticks) }
			if err := show(c.OutOrStdout(), asJSON, newReplayReport(ticks), text); err != nil || svg == "" {
				return err
			}
			return writeReplayChart(svg, ticks)
		},
	}
	c.Flags().StringVar(&svg, "svg", "", "draw fill, pressure and levels to this file")
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

// newReplayReport sums a replay up.
func newReplayReport(ticks []record.Tick) replayReport {
	r := replayReport{Ticks: len(ticks), Events: []policy.Event{}}
	for _, t := range ticks {
		r.Events = append(r.Events, t.Decision.Events...)
		r.Peak = max(r.Peak, t.Decision.Fill)
		if t.Decision.Posture.Level != t.Recorded {
			r.Differ++
		}
	}
	if r.Ticks > 0 {
		r.Seconds = ticks[r.Ticks-1].Observation.Time.Sub(ticks[0].Observation.Time).Seconds()
	}
	return r
}

// printReplay prints the events of a replay and how it differs from what was recorded.
func printReplay(w io.Writer, ticks []record.Tick) {
	if len(ticks) == 0 {
		fmt.Fprintln(w, "the recording is empty")
		return
	}
	r := newReplayReport(ticks)
	for _, e := range r.Events {
		printEvent(w, control.NumberedEvent{Event: e})
	}
	took := time.Duration(r.Seconds * float64(time.Second)).Round(time.Millisecond)
	fmt.Fprintf(w, "%d ticks in %s, peak fill %.1f %%\n", r.Ticks, took, r.Peak)
	if r.Differ == 0 {
		fmt.Fprintln(w, "the level was the same as recorded at every tick")
		return
	}
	first := ticks[slices.IndexFunc(ticks, func(t record.Tick) bool { return t.Decision.Posture.Level != t.Recorded })]
	fmt.Fprintf(w, "the level differed at %d ticks, first at %s: %d where %d was recorded\n",
		r.Differ, first.Observation.Time.Format("15:04:05.000"), first.Decision.Posture.Level, first.Recorded)
}
