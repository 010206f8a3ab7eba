package main

import (
	"fmt"
	"runtime"

	"github.com/spf13/cobra"

	"ctguard/agent"
)

func versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "version",
		Short:   "print the version",
		Example: "  ctguard version",
		Args:    cobra.NoArgs,
		Run: func(c *cobra.Command, _ []string) {
			fmt.Fprintf(c.OutOrStdout(), "ctguard %s (%s, %s/%s)\n", agent.Version, runtime.Version(), runtime.GOOS,
				runtime.GOARCH)
		},
	}
}
