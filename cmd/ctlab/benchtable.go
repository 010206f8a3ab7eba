package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"

	"github.com/spf13/cobra"

	"ctguard/cmd/ctlab/internal/conntrackbench"
)

// benchTableCommand measures the reader and cleaner of the table against its peers.
func benchTableCommand() *cobra.Command {
	var o conntrackbench.Options
	c := &cobra.Command{
		Use:   "bench-table",
		Short: "measure reading and cleaning a table of a million entries, side by side with peers",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			// The lab's own lock: both change the bound of every table.
			lock, err := net.Listen("unix", "@ctguard-ctlab")
			if errors.Is(err, syscall.EADDRINUSE) {
				return errors.New("another ctlab is running: its figures and these would mean nothing")
			}
			if err != nil {
				return fmt.Errorf("lock the lab: %w", err)
			}
			defer lock.Close()
			self, err := os.Executable()
			if err != nil {
				return err
			}
			o.Child = []string{self, "bench-table-child"}
			return conntrackbench.Run(c.Context(), c.OutOrStdout(), o)
		},
	}
	c.Flags().StringVar(&o.CTGuard, "ctguard", besideMe(), "the ctguard binary")
	c.Flags().IntVar(&o.Entries, "entries", 0, "entries in the table (default 1 000 000)")
	c.Flags().IntVar(&o.Rounds, "rounds", 0, "pairs behind each median (default 5)")
	c.Flags().IntVar(&o.Trials, "trials", 0, "sources that a sampled scan must find (default 1 000)")
	c.Flags().StringSliceVar(&o.Only, "only", nil, "the parts to run (default all)")
	return c
}

// benchTableChildCommand scans the table it is started in and tells its memory.
func benchTableChildCommand() *cobra.Command {
	return &cobra.Command{
		Use:    "bench-table-child",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return conntrackbench.Child(c.Context(), c.OutOrStdout())
		},
	}
}
