package main

import (
	"encoding/json"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"ctguard/agent"
)

func (p *program) planCommand() *cobra.Command {
	var level int
	var asJSON bool
	c := &cobra.Command{
		Use:   "plan",
		Short: "print the exact ruleset and settings a level would bring here; write nothing",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			config, err := p.config()
			if err != nil {
				return err
			}
			if !c.Flags().Changed("level") {
				level = len(config.Policy.Steps)
			}
			if most := len(config.Policy.Steps); level < 0 || level > most {
				return usage(fmt.Errorf("level %d is not between 0 and %d, the number of steps on this ladder", level, most), "")
			}
			plan, err := agent.NewPlan(config, "/", level)
			if err != nil {
				return err
			}
			return show(c.OutOrStdout(), asJSON, plan, func(w io.Writer) { printPlan(w, plan) })
		},
	}
	c.Flags().IntVar(&level, "level", 0, "the level to plan (default the whole ladder)")
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

// printPlan prints a plan so that its ruleset can be fed to nft.
func printPlan(w io.Writer, plan agent.Plan) {
	fmt.Fprintf(w, "# level %d\n", plan.Level)
	for _, s := range plan.Steps {
		switch {
		case s.Engaged && s.Skipped != "":
			fmt.Fprintf(w, "# %s: skipped: %s\n", s.Name, s.Skipped)
		case s.Engaged:
			fmt.Fprintf(w, "# %s\n", s.Name)
		}
	}
	for _, s := range plan.Selectors {
		if s.Refused != "" {
			fmt.Fprintf(w, "# stays tracked: %s: %s\n", s.Selector, s.Refused)
		}
	}
	for _, change := range plan.Settings {
		fmt.Fprintf(w, "# sysctl net.netfilter.%s\n", change)
	}
	fmt.Fprint(w, plan.Ruleset)
}

// printJSONLine prints v as one line of JSON.
func printJSONLine(w io.Writer, v any) error { return newEncoder(w).Encode(v) }

// newEncoder returns an encoder that leaves the > of a reason as it is.
func newEncoder(w io.Writer) *json.Encoder {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	return e
}
