package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"ctguard/agent"
	"ctguard/agent/conntrack"
	"ctguard/policy"
)

func (p *program) evictCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "evict PREFIX",
		Short: "delete the entries of a source now",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			prefix, err := agent.ParsePrefix(args[0])
			if err != nil {
				return usage(err, "ctguard evict 198.51.100.7")
			}
			config, err := p.config()
			if err != nil {
				return err
			}
			table, err := conntrack.Open()
			if err != nil {
				return err
			}
			defer table.Close()
			freed, err := table.Evict(c.Context(), conntrack.Eviction{Caps: []policy.Cap{{Prefix: prefix}}, Spare: config.Allow})
			fmt.Fprintf(c.OutOrStdout(), "deleted %d entries of %s\n", freed.Entries, prefix)
			return err
		},
	}
}
