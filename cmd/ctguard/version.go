package main

import (
	"fmt"
	"io"
	"runtime"

	"github.com/spf13/cobra"

	"ctguard/agent"
)

// versionReport is what `ctguard version --json` prints. Field names are stable.
type versionReport struct {
	Version string `json:"version"`
	Go      string `json:"go"`
	System  string `json:"system"` // such as linux/amd64
}

func versionCommand() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:     "version",
		Short:   "print the version",
		Example: "  ctguard version",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			r := versionReport{agent.Version, runtime.Version(), runtime.GOOS + "/" + runtime.GOARCH}
			return show(c.OutOrStdout(), asJSON, r, func(w io.Writer) {
				fmt.Fprintf(w, "ctguard %s (%s, %s)\n", r.Version, r.Go, r.System)
			})
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}
