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
		Long: "Explain says what operators said of a source, whether it is on the allowlist, what it usually holds here,\n" +
			"what it would be asked for if evict came in now, and why it is, or is not, limited.",
		Example:           "  ctguard explain 198.51.100.7\n  ctguard explain 2001:db8::/64",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: p.completeSources,
		RunE: func(c *cobra.Command, args []string) error {
			if _, err := config.ParsePrefix(args[0]); err != nil {
				return usage(err, "ctguard explain 198.51.100.7")
			}
			var lines []string
			if err := p.call(c.Context(), "explain?prefix="+url.QueryEscape(args[0]), nil, &lines); err != nil {
				return err
			}
			for _, line := range lines {
				fmt.Fprintln(c.OutOrStdout(), forPeople(line))
			}
			return nil
		},
	}
}
