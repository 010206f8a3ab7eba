package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"ctguard/agent"
	"ctguard/agent/sysctl"
)

func (p *program) planCommand() *cobra.Command {
	var text string
	var asJSON, full bool
	c := &cobra.Command{
		Use:   "plan",
		Short: "print what a level would change here; write nothing",
		Long: "Plan says which steps would work here, which settings would change and what the rules would do, with the\n" +
			"table as it is now. --full prints the whole ruleset as well, so that nft -c -f takes it.",
		Example: "  ctguard plan\n  ctguard plan --level notrack\n  ctguard plan --full > plan.nft && nft -c -f plan.nft",
		Args:    cobra.NoArgs,
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
			return show(c.OutOrStdout(), asJSON, plan, func(w io.Writer) { printPlan(w, plan, full) })
		},
	}
	c.Flags().StringVar(&text, "level", "",
		"the level to plan, a number or the step on top of it (default the whole ladder)")
	c.Flags().BoolVar(&full, "full", false, "the whole ruleset, too")
	_ = c.RegisterFlagCompletionFunc("level", p.completeLevels()) // fails only for a flag that is not there
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

// printPlan prints what a plan changes, and on demand its whole ruleset, all of it so that it can be fed to nft.
func printPlan(w io.Writer, plan agent.Plan, full bool) {
	fmt.Fprintf(w, "# level %d\n", plan.Level)
	for _, s := range plan.Steps {
		switch {
		case s.Engaged && s.Skipped != "":
			fmt.Fprintf(w, "# %s: skipped: %s\n", s.Name, forPeople(s.Skipped))
		case s.Engaged:
			fmt.Fprintf(w, "# %s\n", s.Name)
		}
	}
	for _, s := range plan.Selectors {
		if s.Refused != "" {
			fmt.Fprintf(w, "# stays tracked: %s: %s\n", s.Selector, forPeople(s.Refused))
		}
	}
	for _, change := range plan.Settings {
		fmt.Fprintf(w, "# sysctl %s%s\n", sysctlPrefix(change.Name), change)
	}
	for _, text := range plan.Rules {
		fmt.Fprintf(w, "# rules: %s\n", forPeople(text))
	}
	if full {
		fmt.Fprint(w, plan.Ruleset)
	} else if len(plan.Rules) > 0 {
		fmt.Fprintf(w, "# --full prints the table inet ctguard, %d lines\n", strings.Count(plan.Ruleset, "\n"))
	}
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
