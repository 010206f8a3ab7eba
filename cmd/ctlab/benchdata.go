package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"ctguard/cmd/ctlab/internal/lab"
	"ctguard/cmd/ctlab/internal/report"
)

// benchDataCommand measures what the rules of each level cost ordinary traffic.
func benchDataCommand() *cobra.Command {
	var o lab.BenchOptions
	var path string
	c := &cobra.Command{
		Use:   "bench-data",
		Short: "measure what each level's rules cost ordinary traffic, and what an early drop saves",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			rows := report.Data{W: c.OutOrStdout()}
			o.OnLevel, o.OnDrops = rows.Level, rows.Drops
			o.Log = func(format string, args ...any) { _, _ = fmt.Fprintf(c.ErrOrStderr(), format+"\n", args...) }
			began := time.Now()
			out, err := lab.BenchData(c.Context(), o)
			err = errors.Join(err, rows.Err)
			if out == nil {
				return err
			}
			if path != "" { // of an interrupted run too
				err = errors.Join(err, writeData(path, out))
			}
			_, _ = fmt.Fprintf(c.ErrOrStderr(), "took %v\n", time.Since(began).Round(time.Second))
			return err
		},
	}
	fs := c.Flags()
	fs.StringVar(&o.CTGuard, "ctguard", besideMe(), "the ctguard binary")
	fs.IntVar(&o.Rounds, "rounds", 0, "pairs behind each median (default 21)")
	fs.DurationVar(&o.Slice, "slice", 0, "how long each half of a pair is measured (default 50ms)")
	fs.IntSliceVar(&o.Levels, "levels", nil, "the levels to measure (default all)")
	fs.StringSliceVar(&o.Topologies, "topology", nil, "the topologies to measure (default both)")
	fs.BoolVar(&o.SkipDrops, "skip-drops", false, "leave out what an early drop saves")
	fs.BoolVar(&o.OnlyDrops, "only-drops", false, "leave out everything else")
	c.MarkFlagsMutuallyExclusive("skip-drops", "only-drops")
	fs.StringVar(&path, "json", "", "write all figures to this file")
	return c
}

func writeData(path string, out *lab.DataBench) error {
	b, err := json.MarshalIndent(out, "", " ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(b, '\n'), 0o644)
}
