package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"ctguard/cmd/ctlab/internal/lab"
)

func listCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "show the topologies, attacks and guards",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return list(cmd.OutOrStdout()) },
	}
}

func list(w io.Writer) error {
	tw := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	line := func(format string, args ...any) { _, _ = fmt.Fprintf(tw, format, args...) } // Flush reports
	line("TOPOLOGY\t\n")
	for _, name := range slices.Sorted(maps.Keys(lab.Topologies)) {
		line("%s\t%s\n", name, lab.Topologies[name])
	}
	line("\t\nATTACK\t\n")
	for _, a := range lab.Attacks {
		line("%s\t%s\n", a.Name, a.Summary)
	}
	line("\t\nGUARD\t\n")
	for _, g := range lab.Guards {
		line("%s\t%s\n", g.Name, g.Summary)
	}
	return tw.Flush()
}
