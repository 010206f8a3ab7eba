package main

import (
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"ctguard/agent/control"
	"ctguard/agent/record"
	"ctguard/policy"
)

func (p *program) replayCommand() *cobra.Command {
	var svg string
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
			printReplay(c.OutOrStdout(), ticks)
			if svg == "" {
				return nil
			}
			return writeReplayChart(svg, ticks)
		},
	}
	c.Flags().StringVar(&svg, "svg", "", "draw fill, pressure and levels to this file")
	return c
}

// printReplay prints the events of a replay and how it differs from what was recorded.
func printReplay(w io.Writer, ticks []record.Tick) {
	if len(ticks) == 0 {
		fmt.Fprintln(w, "the recording is empty")
		return
	}
	differ, peak := 0, 0.0
	var first *record.Tick
	for i, t := range ticks {
		for _, e := range t.Decision.Events {
			printEvent(w, control.NumberedEvent{Event: e})
		}
		if peak = max(peak, t.Decision.Fill); t.Decision.Posture.Level != t.Recorded {
			if differ++; first == nil {
				first = &ticks[i]
			}
		}
	}
	start, end := ticks[0].Observation.Time, ticks[len(ticks)-1].Observation.Time
	fmt.Fprintf(w, "%d ticks in %s, peak fill %.1f %%\n", len(ticks), end.Sub(start).Round(1e6), peak)
	if first == nil {
		fmt.Fprintln(w, "the level was the same as recorded at every tick")
		return
	}
	fmt.Fprintf(w, "the level differed at %d ticks, first at %s: %d where %d was recorded\n",
		differ, first.Observation.Time.Format("15:04:05.000"), first.Decision.Posture.Level, first.Recorded)
}
