package main

import (
	"bytes"
	"errors"
	"os"

	"github.com/spf13/cobra"

	"ctguard/cmd/ctlab/internal/scalebench"
)

// benchScaleCommand measures how the agent grows with what it guards.
func benchScaleCommand() *cobra.Command {
	var o scalebench.Options
	var svg string
	c := &cobra.Command{
		Use:   "bench-scale",
		Short: "measure how the agent grows with entries, limited sources, services, sockets and namespaces",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			table := scalebench.Table{W: c.OutOrStdout()}
			o.OnPoint = table.Point
			points, err := scalebench.Run(c.Context(), o)
			if err = errors.Join(err, table.Err); err != nil || svg == "" {
				return err
			}
			var b bytes.Buffer
			if err := scalebench.Draw(&b, points); err != nil {
				return err
			}
			return os.WriteFile(svg, b.Bytes(), 0o644)
		},
	}
	c.Flags().StringVar(&o.CTGuard, "ctguard", besideMe(), "the ctguard binary")
	c.Flags().StringSliceVar(&o.Only, "only", nil, "what to vary: entries, limited-sources, services, sockets, namespaces")
	c.Flags().IntVar(&o.Most, "most", 0, "leave out sizes above this")
	c.Flags().StringVar(&svg, "svg", "", "draw a chart into this file")
	return c
}
