package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"ctguard/agent/control"
)

func (p *program) eventsCommand() *cobra.Command {
	var follow, asJSON bool
	c := &cobra.Command{
		Use:     "events",
		Short:   "show what changed and why",
		Example: "  ctguard events\n  ctguard events --follow\n  ctguard events --json | jq 'select(.event == \"level\")'",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			path, after := "events?since=%d", uint64(0)
			for {
				var list []control.NumberedEvent
				if err := p.call(c.Context(), fmt.Sprintf(path, after), nil, &list); err != nil || c.Context().Err() != nil {
					return err
				}
				for _, e := range list {
					after = e.Number
					if !asJSON {
						printEvent(c.OutOrStdout(), e)
					} else if err := printJSONLine(c.OutOrStdout(), e); err != nil {
						return err
					}
				}
				if !follow {
					return nil
				}
				path = "events?since=%d&wait=1"
			}
		},
	}
	c.Flags().BoolVar(&follow, "follow", false, "go on with new events as they come")
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON, an event a line")
	return c
}
