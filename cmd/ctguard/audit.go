package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"ctguard/agent/audit"
	"ctguard/agent/control"
	"ctguard/agent/state"
)

// auditReport is what `ctguard audit --json` prints. Field names are stable.
type auditReport struct {
	Severity audit.Severity  `json:"severity"` // the worst of all
	Count    int             `json:"count"`
	Capacity int             `json:"capacity"`
	Findings []audit.Finding `json:"findings"` // the worst first
}

func (p *program) auditCommand() *cobra.Command {
	var asJSON, dropIn, quick, full bool
	c := &cobra.Command{
		Use:   "audit",
		Short: "compare this host with the usual advice on a full table; read-only, no daemon needed",
		Long: "Audit looks at limits, counters, settings, entries and rules, and says what is wrong, why it matters and\n" +
			"what to do. It changes nothing. It takes three seconds, to see what moves. Exit code 0 says that nothing has\n" +
			"to be done, 4 that there are warnings, 5 that connections fail now or will in a moment.",
		Example: "  ctguard audit\n  ctguard audit --json | jq '.findings[] | select(.severity != \"ok\")'\n" +
			"  ctguard audit --sysctl > /etc/sysctl.d/90-conntrack.conf",
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			conf, err := p.inside(c.Context())
			if err != nil {
				return err
			}
			facts, err := audit.Reader{Root: "/", Quick: quick, State: conf.StateDir}.Read(c.Context())
			if err != nil {
				return err
			}
			facts.Daemon = p.daemonFacts(c.Context())
			all := audit.Judge(facts)
			if dropIn {
				audit.WriteDropIn(c.OutOrStdout(), facts, all)
				return nil
			}
			r := auditReport{audit.Worst(all), facts.Count, facts.Settings["nf_conntrack_max"], all}
			err = show(c.OutOrStdout(), asJSON, r, func(w io.Writer) { newAuditPrinter(w, full).print(r) })
			return errors.Join(err, auditExit(r.Severity))
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.Flags().BoolVar(&dropIn, "sysctl", false, "print the advised settings as a file for /etc/sysctl.d; exit code 0")
	c.Flags().BoolVar(&quick, "quick", false, "look once, without waiting to see what moves")
	c.Flags().BoolVar(&full, "full", false, "everything about every finding, and what is fine")
	c.MarkFlagsMutuallyExclusive("json", "sysctl")
	return c
}

// auditExit is the exit code of an audit: the findings have said why already.
func auditExit(worst audit.Severity) error {
	switch worst {
	case audit.Critical:
		return &codedError{code: exitCritical}
	case audit.Warning:
		return &codedError{code: exitWarnings}
	default:
		return nil
	}
}

// daemonFacts asks the daemon, if there is one that answers; an audit does without.
func (p *program) daemonFacts(ctx context.Context) *audit.Daemon {
	if !state.Running() {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	var s control.Status
	if p.call(ctx, "status", nil, &s) != nil {
		return nil
	}
	d := &audit.Daemon{Level: s.Level, Peak: s.Count, Waits: s.Ordinary.Waits}
	if h, ok := p.highest(ctx); ok {
		d.Peak, d.Watched = max(d.Peak, h.Count), h.since
	}
	return d
}

// auditPrinter prints findings for people.
type auditPrinter struct {
	w      io.Writer
	full   bool
	width  int
	colour bool
	gap    bool // a finding in full came last
}

// newAuditPrinter fits what it prints to a terminal: its width, and colours unless NO_COLOR is set (no-color.org).
func newAuditPrinter(w io.Writer, full bool) *auditPrinter {
	p := &auditPrinter{w: w, full: full}
	if f, ok := w.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		p.colour = os.Getenv("NO_COLOR") == ""
		if width, _, err := term.GetSize(int(f.Fd())); err == nil && width > 40 {
			p.width = min(width, 120)
		}
	}
	return p
}

// print prints a report: what must be done in full, what is worth knowing on a line each, the rest as a number.
func (p *auditPrinter) print(r auditReport) {
	var count [audit.Critical + 1]int
	for _, f := range r.Findings {
		count[f.Severity]++
	}
	fmt.Fprintf(p.w, "%d entries of %d. Critical: %d, warnings: %d, to know: %d, fine: %d.\n", r.Count, r.Capacity,
		count[audit.Critical], count[audit.Warning], count[audit.Info], count[audit.OK])
	for _, f := range r.Findings {
		switch {
		case f.Severity >= audit.Warning || p.full && f.Severity == audit.Info:
			p.whole(f)
		case f.Severity == audit.Info || p.full:
			p.line(f)
		}
	}
	if !p.full && count[audit.Info]+count[audit.OK] > 0 {
		fmt.Fprintln(p.w, "\nctguard audit --full says more.")
	}
}

// colours of severities: SGR codes of ECMA-48.
var colours = [...]string{audit.OK: "32", audit.Info: "36", audit.Warning: "33;1", audit.Critical: "31;1"}

// line prints a finding on a line.
func (p *auditPrinter) line(f audit.Finding) {
	if p.gap {
		fmt.Fprintln(p.w)
		p.gap = false
	}
	word := fmt.Sprintf("%-8s", f.Severity)
	if p.colour {
		word = "\x1b[" + colours[f.Severity] + "m" + word + "\x1b[0m"
	}
	fmt.Fprintf(p.w, "%s  %s: %s\n", word, f.ID, f.Title)
}

// whole prints all of a finding, between empty lines.
func (p *auditPrinter) whole(f audit.Finding) {
	p.gap = true
	p.line(f)
	seen := f.Evidence
	if f.Sure != audit.Certain {
		seen += " (" + string(f.Sure) + ")"
	}
	p.part("seen", wrap(seen, p.width-indent))
	p.part("why", wrap(f.Why, p.width-indent))
	p.part("do", f.Do) // not wrapped: it is there to be copied
	p.gap = true
}

// indent is how far the parts of a finding are moved to the right.
const indent = 16

// part prints lines with a word before the first.
func (p *auditPrinter) part(word string, lines []string) {
	for _, line := range lines {
		fmt.Fprintf(p.w, "%*s%-*s%s\n", indent-6, "", 6, word, line)
		word = ""
	}
}

// wrap breaks a text into lines of a width, at spaces. Without a terminal there is no width, and a line is
// easier to search.
func wrap(text string, width int) (lines []string) {
	if text == "" || width <= 0 {
		return slices.DeleteFunc([]string{text}, func(s string) bool { return s == "" })
	}
	line := ""
	for _, word := range strings.Fields(text) {
		switch {
		case line == "":
			line = word
		case len(line)+1+len(word) > width:
			lines = append(lines, line)
			line = word
		default:
			line += " " + word
		}
	}
	return append(lines, line)
}
