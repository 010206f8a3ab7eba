package main

import (
	"fmt"
	"io"
	"net/netip"
	"net/url"

	"github.com/spf13/cobra"

	"ctguard/agent/config"
)

// explanation is what `ctguard explain --json` prints. Field names are stable.
type explanation struct {
	Prefix netip.Prefix `json:"prefix"`
	Lines  []string     `json:"lines"` // in words
}

func (p *program) explainCommand() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "explain PREFIX",
		Short: "say why a source is, or is not, limited",
		Long: "Explain says what operators said of a source, whether it is on the allowlist, what it usually holds here,\n" +
			"what it would be asked for if evict came in now, and why it is, or is not, limited.",
		Example:           "  ctguard explain 198.51.100.7\n  ctguard explain 2001:db8::/64",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: p.completeSources,
		RunE: func(c *cobra.Command, args []string) error {
			prefix, err := config.ParsePrefix(args[0])
			if err != nil {
				return usage(err, "ctguard explain 198.51.100.7")
			}
			e := explanation{Prefix: prefix}
			if err := p.call(c.Context(), "explain?prefix="+url.QueryEscape(args[0]), nil, &e.Lines); err != nil {
				return err
			}
			return show(c.OutOrStdout(), asJSON, e, func(w io.Writer) {
				for _, line := range e.Lines {
					fmt.Fprintln(w, forPeople(line))
				}
			})
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}
