package main

import (
	"fmt"
	"net/url"

	"github.com/spf13/cobra"

	"ctguard/agent/config"
)

func (p *program) explainCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "explain PREFIX",
		Short: "say why a source is, or is not, limited",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if _, err := config.ParsePrefix(args[0]); err != nil {
				return usage(err, "ctguard explain 198.51.100.7")
			}
			var lines []string
			if err := p.call(c.Context(), "explain?prefix="+url.QueryEscape(args[0]), nil, &lines); err != nil {
				return err
			}
			for _, line := range lines {
				fmt.Fprintln(c.OutOrStdout(), line)
			}
			return nil
		},
	}
}
