package main

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"ctguard/agent/control"
	"ctguard/policy"
)

func (p *program) holdCommand() *cobra.Command {
	var r control.HoldRequest
	var atMost bool
	c := &cobra.Command{
		Use:   "hold LEVEL|STEP|now --for 30m --reason R",
		Short: "pin the level, the one with STEP on top, or freeze it where it is; ctguard auto gives it back",
		Example: "  ctguard hold 0 --for 30m --reason \"is it ctguard?\"\n" +
			"  ctguard hold notrack --at-most --for 2h --reason maintenance\n" +
			"  ctguard hold now --for 10m --reason \"look at it\"",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: p.completeLevels("now"),
		RunE: func(c *cobra.Command, args []string) error {
			r.Kind = policy.Pin
			if atMost {
				r.Kind = policy.AtMost
			}
			if args[0] == "now" && atMost {
				return usage(errors.New("now freezes the level where it is: --at-most needs a number"),
					"ctguard hold 1 --at-most --for 30m --reason maintenance")
			} else if args[0] == "now" {
				r.Kind = policy.Freeze
			} else {
				conf, err := p.config()
				if err != nil {
					return err
				}
				if r.Level, err = levelOf(args[0], conf.Policy.Steps); err != nil {
					return usage(err, "ctguard hold notrack --for 30m --reason maintenance")
				}
			}
			return p.call(c.Context(), "hold", r, nil)
		},
	}
	c.Flags().StringVar(&r.For, "for", "", "how long, a duration such as 30m (required)")
	c.Flags().StringVar(&r.Reason, "reason", "", "why (required)")
	c.Flags().BoolVar(&atMost, "at-most", false, "cap the level instead of pinning it")
	return c
}

// levelOf reads a level: a number, or the name of the step on top of it.
func levelOf(text string, ladder []policy.Step) (int, error) {
	level, err := strconv.Atoi(text)
	if i := slices.IndexFunc(ladder, func(s policy.Step) bool { return string(s.Name) == text }); i >= 0 {
		return i + 1, nil
	}
	if err != nil {
		names := make([]string, len(ladder))
		for i, s := range ladder {
			names[i] = string(s.Name)
		}
		return 0, fmt.Errorf("level %q is no number, nor a step of the ladder: %s", text, strings.Join(names, ", "))
	}
	return level, nil
}

func (p *program) autoCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "auto",
		Short:   "give the level back to ctguard",
		Example: "  ctguard auto",
		Args:    cobra.NoArgs,
		RunE:    func(c *cobra.Command, _ []string) error { return p.call(c.Context(), "auto", struct{}{}, nil) },
	}
}

func (p *program) limitCommand() *cobra.Command {
	return p.prefixCommand("limit", "hold a source back: its new flows only", false)
}

func (p *program) releaseCommand() *cobra.Command {
	return p.prefixCommand("release", "release a source and leave it alone", true)
}

// prefixCommand makes a command that takes an operator's word on one prefix.
func (p *program) prefixCommand(name, short string, release bool) *cobra.Command {
	r := control.PrefixRequest{Release: release}
	c := &cobra.Command{
		Use:   name + " PREFIX",
		Short: short,
		Example: "  ctguard " + name + " 198.51.100.7\n" +
			"  ctguard " + name + " 2001:db8:7::/48 --for 2h --reason \"asked by phone\"",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: p.completeSources,
		RunE: func(c *cobra.Command, args []string) error {
			r.Prefix = args[0]
			return p.call(c.Context(), "prefix", r, nil)
		},
	}
	c.Flags().StringVar(&r.For, "for", "1h", "how long, a duration such as 30m")
	c.Flags().StringVar(&r.Reason, "reason", "asked for with ctguard "+name, "why")
	return c
}
