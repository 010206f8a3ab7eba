package main

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"ctguard/agent/config"
	"ctguard/agent/control"
	"ctguard/policy"
)

func (p *program) holdCommand() *cobra.Command {
	var r control.HoldRequest
	var atMost, asJSON bool
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
			if err := p.call(c.Context(), "hold", r, nil); err != nil {
				return err
			}
			ov := policy.Override{Kind: r.Kind, Level: r.Level, Until: end(r.For), Reason: r.Reason}
			return show(c.OutOrStdout(), asJSON, ov, func(w io.Writer) {
				fmt.Fprintf(w, "%s, until %s; ctguard auto gives the level back\n", &ov, ov.Until.Format(time.DateTime))
			})
		},
	}
	c.Flags().StringVar(&r.For, "for", "", "how long, a duration such as 30m (required)")
	c.Flags().StringVar(&r.Reason, "reason", "", "why (required)")
	c.Flags().BoolVar(&atMost, "at-most", false, "cap the level instead of pinning it")
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

// end is when an operator's word ends that the daemon has just taken.
func end(span string) time.Time {
	d, _ := time.ParseDuration(span) // it was judged by the daemon
	return time.Now().Add(d).Round(time.Second)
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

// autoReport is what `ctguard auto --json` prints. Field names are stable.
type autoReport struct {
	Override *policy.Override `json:"override"` // null: there is none any more
}

func (p *program) autoCommand() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:     "auto",
		Short:   "give the level back to ctguard",
		Example: "  ctguard auto",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := p.call(c.Context(), "auto", struct{}{}, nil); err != nil {
				return err
			}
			return show(c.OutOrStdout(), asJSON, autoReport{}, func(w io.Writer) {
				fmt.Fprintln(w, "ctguard decides the level by itself")
			})
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
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
	var asJSON bool
	c := &cobra.Command{
		Use:   name + " PREFIX",
		Short: short,
		Example: "  ctguard " + name + " 198.51.100.7\n" +
			"  ctguard " + name + " 2001:db8:7::/48 --for 2h --reason \"asked by phone\"",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: p.completeSources,
		RunE: func(c *cobra.Command, args []string) error {
			prefix, err := config.ParsePrefix(args[0])
			if err != nil {
				return usage(err, "ctguard "+name+" 198.51.100.7")
			}
			r.Prefix = args[0]
			if err := p.call(c.Context(), "prefix", r, nil); err != nil {
				return err
			}
			w := policy.Word{Prefix: prefix, Release: release, Until: end(r.For), Reason: r.Reason}
			return show(c.OutOrStdout(), asJSON, w, func(out io.Writer) { printWord(out, w) })
		},
	}
	c.Flags().StringVar(&r.For, "for", "1h", "how long, a duration such as 30m")
	c.Flags().StringVar(&r.Reason, "reason", "asked for with ctguard "+name, "why")
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

// printWord says what an operator's word on a prefix does.
func printWord(out io.Writer, w policy.Word) {
	name, until := control.ShortPrefix(w.Prefix), w.Until.Format(time.DateTime)
	if w.Release {
		fmt.Fprintf(out, "%s is left alone until %s: never limited, evicted or refused\n", name, until)
		return
	}
	fmt.Fprintf(out, "new flows of %s are held back until %s; what it has goes on (ctguard evict %s ends it)\n", name,
		until, name)
}
