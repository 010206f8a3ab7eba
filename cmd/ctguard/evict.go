package main

import (
	"context"
	"fmt"
	"net/netip"

	"github.com/spf13/cobra"

	"ctguard/agent/config"
	"ctguard/agent/conntrack"
	"ctguard/agent/control"
	"ctguard/agent/state"
	"ctguard/agent/survey"
)

func (p *program) evictCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "evict PREFIX",
		Short: "delete the entries of a source now",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			prefix, err := config.ParsePrefix(args[0])
			if err != nil {
				return usage(err, "ctguard evict 198.51.100.7")
			}
			conf, err := p.inside(c.Context())
			if err != nil {
				return err
			}
			spare, err := p.spared(c.Context(), conf)
			if err != nil {
				return err
			}
			table, err := conntrack.Open()
			if err != nil {
				return err
			}
			defer table.Close()
			deleted, err := table.EvictPrefix(c.Context(), prefix, spare)
			fmt.Fprintf(c.OutOrStdout(), "deleted %d entries of %s\n", deleted, prefix)
			return err
		},
	}
}

// spared returns the whole allowlist: what is configured, what is learnt of this host and, where there is
// a daemon, the operators that it has seen stay.
func (p *program) spared(ctx context.Context, conf config.Config) ([]netip.Prefix, error) {
	spare, err := survey.Allowlist(conf, "/")
	if err != nil || !state.Running() {
		return spare, err
	}
	var s control.Status
	if err := p.call(ctx, "status", nil, &s); err != nil {
		return nil, fmt.Errorf("ask whom to spare: %w", err)
	}
	return append(spare, s.Allow...), nil
}
