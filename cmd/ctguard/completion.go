package main

import (
	"context"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"ctguard/agent/control"
)

// completeWithin is how long somebody who presses the tabulator waits for the daemon.
const completeWithin = time.Second

// completeLevels completes a level by the names of the steps of this host's ladder.
func (p *program) completeLevels(more ...string) cobra.CompletionFunc {
	return func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		conf, err := p.config()
		if err != nil || len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		names := slices.Clone(more)
		for _, s := range conf.Policy.Steps {
			names = append(names, string(s.Name))
		}
		return names, cobra.ShellCompDirectiveNoFileComp
	}
}

// completeSources completes a source by those that the daemon limits, and by the largest.
func (p *program) completeSources(c *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	ctx, cancel := context.WithTimeout(c.Context(), completeWithin)
	defer cancel()
	var s control.Status
	if len(args) > 0 || p.call(ctx, "status", nil, &s) != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var names []string
	for _, l := range s.Limited {
		names = append(names, cobra.CompletionWithDesc(control.ShortPrefix(l.Prefix), "limited"))
	}
	if s.Holders != nil {
		for _, h := range s.Holders.Sources {
			names = append(names, control.ShortPrefix(h.Prefix))
		}
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}
