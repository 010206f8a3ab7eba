package main

import (
	"encoding/json"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"ctguard/agent"
	"ctguard/agent/sysctl"
)

func (p *program) planCommand() *cobra.Command {
	var text string
	var asJSON bool
	c := &cobra.Command{
		Use:   "plan",
		Short: "print the exact ruleset and settings a level would bring here; write nothing",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			conf, err := p.inside(c.Context())
			if err != nil {
				return err
			}
			level := len(conf.Policy.Steps)
			if c.Flags().Changed("level") {
				if level, err = levelOf(text, conf.Policy.Steps); err != nil {
					return usage(err, "ctguard plan --level notrack")
				}
			}
			if most := len(conf.Policy.Steps); level < 0 || level > most {
				return usage(fmt.Errorf("level %d is not between 0 and %d, the number of steps on this ladder", level, most), "")
			}
			plan, err := agent.NewPlan(conf, "/", level)
			if err != nil {
				return err
			}
			return show(c.OutOrStdout(), asJSON, plan, func(w io.Writer) { printPlan(w, plan) })
		},
	}
	c.Flags().StringVar(&text, "level", "",
		"the level to plan, a number or the step on top of it (default the whole ladder)")
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
		fmt.Fprintf(w, "# sysctl %s%s\n", sysctlPrefix(change.Name), change)
	}
	fmt.Fprint(w, plan.Ruleset)
}

// sysctlPrefix returns where a setting lives, as sysctl(8) writes it.
func sysctlPrefix(name string) string {
	if name == sysctl.Timestamps {
		return "net.ipv4."
	}
	return "net.netfilter."
}

// printJSONLine prints v as one line of JSON.
func printJSONLine(w io.Writer, v any) error { return newEncoder(w).Encode(v) }

// newEncoder returns an encoder that leaves the > of a reason as it is.
func newEncoder(w io.Writer) *json.Encoder {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	return e
}
