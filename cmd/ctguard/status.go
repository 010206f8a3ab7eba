package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"ctguard/agent/control"
	"ctguard/policy"
)

func (p *program) statusCommand() *cobra.Command {
	var asJSON, watch, full bool
	c := &cobra.Command{
		Use:   "status",
		Short: "show level, fill, steps with reasons, limited sources and override",
		Long: "Status says what concerns this host now. --full also says what this kernel lacks without any harm, and how\n" +
			"far each service is on its way to going untracked at level 0; --json has all of it.",
		Example: "  ctguard status\n  ctguard status --watch\n  ctguard status --json | jq .fill_percent",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			for {
				var s control.Status
				if err := p.call(c.Context(), "status", nil, &s); err != nil || c.Context().Err() != nil {
					return err
				}
				past := ""
				if !asJSON {
					past = p.past(c.Context())
				}
				if watch && !asJSON && isTerminal(c.OutOrStdout()) {
					fmt.Fprint(c.OutOrStdout(), "\x1b[H\x1b[2J")
				}
				text := func(w io.Writer) { printStatus(w, s, past, full) }
				if err := show(c.OutOrStdout(), asJSON, s, text); err != nil || !watch {
					return err
				}
				select {
				case <-c.Context().Done():
					return nil
				case <-time.After(time.Second):
				}
			}
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.Flags().BoolVar(&watch, "watch", false, "print again each second")
	c.Flags().BoolVar(&full, "full", false, "also what does not matter now")
	return c
}

// show prints v as JSON or as text.
func show(w io.Writer, asJSON bool, v any, text func(io.Writer)) error {
	if !asJSON {
		text(w)
		return nil
	}
	e := newEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// isTerminal reports whether somebody looks at what is written.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// printStatus prints the status for people, with a line on the past unless that is empty: what concerns this host now,
// or all of it.
func printStatus(w io.Writer, s control.Status, past string, full bool) {
	soon := "not filling"
	if s.SecondsToFull != nil {
		soon = fmt.Sprintf("full in %.0f s", *s.SecondsToFull)
	}
	fmt.Fprintf(w, "level %d of %d%s (%s)   fill %.1f %% (%d of %d)   %+.0f/s, %s   kernel drops %d\n",
		s.Level, len(s.Steps), named(s), s.Mode, s.Fill, s.Count, s.Capacity, s.Rate, soon, s.KernelDrops)
	if past != "" {
		fmt.Fprintln(w, past)
	}
	if s.Override != nil {
		fmt.Fprintf(w, "override: %s, until %s\n", s.Override, s.Override.Until.Format(time.DateTime))
	}
	fmt.Fprintf(w, "ordinary day: %s\n", s.Ordinary)
	if adviceIsNeeded(s) {
		fmt.Fprintln(w, "the table stays full with what was there before: ctguard sources shows who holds it, "+
			"ctguard evict ADDRESS or ctguard evict --over N lets it go")
	}
	printRoles(w, s)
	for _, text := range s.Degraded {
		fmt.Fprintf(w, "degraded: %s\n", forPeople(text))
	}
	for _, text := range s.Missing {
		fmt.Fprintf(w, "kernel lacks %s\n", text)
	}
	if full {
		for _, text := range s.Slower {
			fmt.Fprintf(w, "kernel lacks %s\n", text)
		}
	}
	fmt.Fprintln(w)
	t := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	fmt.Fprintln(t, "STEP\tSTATE\tENTER/LEAVE %\tWORK\tWHY")
	for _, step := range s.Steps {
		state, why := "off", step.Reason
		if step.Engaged {
			state = "engaged " + time.Since(*step.Since).Round(time.Second).String()
		}
		if step.Skipped != "" {
			state, why = strings.Replace(state, "engaged", "skipped", 1), step.Skipped
		}
		fmt.Fprintf(t, "%s\t%s\t%g/%g\t%d\t%s\n", step.Name, state, step.Enter, step.Leave, step.Work, forPeople(why))
	}
	t.Flush()
	if s.Level > 0 || full {
		printSelectors(w, s)
	}
	printLimited(w, s)
	if n := len(s.Events); n > 0 {
		fmt.Fprintln(w)
		for _, e := range s.Events[max(0, n-5):] {
			printEvent(w, e)
		}
	}
}

// stuckAt is the fill in percent at which a table that nothing is known of needs an operator.
const stuckAt = 95

// adviceIsNeeded reports whether the table is full with conversations that ctguard takes from nobody, for it does not
// know who was here before.
func adviceIsNeeded(s control.Status) bool {
	return s.Fill >= stuckAt && len(s.Limited) > 0 && !s.Ordinary.Known
}

// how says how a source is limited.
func how(l control.LimitedStatus) string {
	text := strings.Join(append([]string{l.Kind}, l.Flows...), " ")
	if l.ButTCP {
		text += " all but tcp"
	}
	if l.Peers > 0 {
		text += fmt.Sprintf(", but %d that answered", l.Peers)
	}
	return text
}

// printRoles says for whom this host forwards, and what its entries are, where it forwards for anybody.
func printRoles(w io.Writer, s control.Status) {
	if len(s.Inside) == 0 {
		return
	}
	text := "inside: " + policy.NamePrefixes(s.Inside, 3)
	if s.Holders != nil && len(s.Holders.Roles) > 0 {
		text += "; entries:"
		for r := range policy.NumRoles {
			if share, some := s.Holders.Roles[r.String()]; some {
				text += fmt.Sprintf(" %.0f %% %s", share, r)
			}
		}
	}
	fmt.Fprintln(w, text)
}

// named is the name of the level for people.
func named(s control.Status) string {
	if s.TopStep == "" {
		return ""
	}
	return ", " + string(s.TopStep)
}

// printSelectors prints the candidates for notrack.
func printSelectors(w io.Writer, s control.Status) {
	if len(s.Selectors) == 0 {
		return
	}
	fmt.Fprintln(w)
	t := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	fmt.Fprintln(t, "SAFE TRAFFIC\tSTATE\tREFUSED BECAUSE")
	for _, sel := range s.Selectors {
		fmt.Fprintf(t, "%s\t%s\t%s\n", sel.Selector, sel.Stage, sel.Refused)
	}
	t.Flush()
	for _, sel := range s.Selectors {
		if sel.Cookies != "" {
			fmt.Fprintf(w, "SYN cookies for %s: %s\n", sel.Selector, sel.Cookies)
		}
	}
}

// printLimited prints the sources that are limited, the first twenty of them.
func printLimited(w io.Writer, s control.Status) {
	if len(s.Limited) == 0 {
		return
	}
	fmt.Fprintln(w)
	t := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	fmt.Fprintln(t, "LIMITED\tHOW\tENTRIES\tUNTIL\tWHY")
	for _, l := range s.Limited[:min(20, len(s.Limited))] {
		fmt.Fprintf(t, "%s\t%s\t%d\t%s\t%s\n", l.Source().Short(), how(l), l.Entries,
			l.Until.Format(time.TimeOnly), forPeople(l.Reason))
	}
	t.Flush()
	if more := len(s.Limited) - 20; more > 0 {
		fmt.Fprintf(w, "and %d more\n", more)
	}
}

// printEvent prints one event on a line.
func printEvent(w io.Writer, e control.NumberedEvent) {
	what := string(e.Kind)
	if e.From != nil && e.To != nil {
		what += fmt.Sprintf(" %d->%d", *e.From, *e.To)
	}
	if e.Step != "" {
		what += " " + string(e.Step)
	}
	if e.Prefix.IsValid() {
		what += " " + e.Source().Short()
	}
	if e.DryRun {
		what += " (dry run)"
	}
	fmt.Fprintf(w, "%s  %s: %s  [fill %.0f %%, %+.0f/s]\n", e.Time.Format("15:04:05.000"), what,
		forPeople(e.Reason), e.Fill, e.Rate)
}
