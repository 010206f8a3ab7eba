package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"ctguard/agent/config"
)

func (p *program) checkCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "check FILE",
		Example: "  ctguard check /etc/ctguard/ctguard.toml",
		Short:   "validate a configuration file",
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if _, err := config.Load(args[0], false); err != nil {
				return usage(err, "")
			}
			fmt.Fprintf(c.OutOrStdout(), "%s: fine\n", args[0])
			return nil
		},
	}
}
