package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"

	"github.com/spf13/cobra"

	"ctguard/agent/config"
	"ctguard/agent/conntrack"
	"ctguard/agent/control"
	"ctguard/agent/state"
	"ctguard/agent/survey"
	"ctguard/policy"
)

// evictionReport is what `ctguard evict --json` prints. Field names are stable.
type evictionReport struct {
	DryRun  bool `json:"dry_run"`
	Entries int  `json:"entries"` // that were deleted, or would be
	Total   int  `json:"total"`   // entries in the table before; 0 where nobody counted
}

// mostUnasked is the part of the table, one in so many entries, that goes without a question.
const mostUnasked = 10

func (p *program) evictCommand() *cobra.Command {
	var f entryFlags
	var dryRun, yes, asJSON bool
	var over int
	c := &cobra.Command{
		Use:   "evict [PREFIX]",
		Short: "delete entries now: those of a source, or those that the filters name",
		Long: "Evict deletes the entries of a source, or those that the filters of ctguard flows name. Entries of\n" +
			"allowlisted sources, of this host and of operators who are logged in stay. --over is for a table that was full\n" +
			"before ctguard was started, which then takes nobody's conversation by itself: ctguard sources shows how much\n" +
			"is far more than anybody should have.",
		Example: "  ctguard evict 198.51.100.7\n  ctguard evict --state TIME_WAIT --dry-run\n" +
			"  ctguard evict -p udp --port 53 --unreplied\n  ctguard evict --over 200 --dry-run",
		Args: cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			e := eviction{program: p, dryRun: dryRun, yes: yes, asJSON: asJSON}
			if len(args) == 1 {
				if f.source != "" {
					return usage(errors.New("PREFIX and --source say the same"), "ctguard evict 198.51.100.7")
				}
				f.source = args[0]
			}
			filters := f.given(c)
			if over < 0 {
				return usage(fmt.Errorf("--over %d is below 0", over), "")
			}
			if len(args)+filters+over == 0 {
				return usage(errors.New("say what to delete: a source or a filter"),
					"ctguard evict 198.51.100.7, or ctguard evict --help")
			}
			var err error
			if e.filter, err = f.filter(c, ""); err != nil {
				return err
			}
			e.wholeSource = len(args) == 1 && filters+over == 0
			e.over = over
			return e.run(c)
		},
	}
	f.add(c)
	c.Flags().IntVar(&over, "over", 0, "only entries of sources that hold more assured ones than so many")
	c.Flags().BoolVar(&dryRun, "dry-run", false, "only say how many entries would go")
	c.Flags().BoolVarP(&yes, "yes", "y", false, "ask no question, however many entries go")
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

// eviction is one `ctguard evict`.
type eviction struct {
	*program
	filter      conntrack.EntryFilter
	wholeSource bool // everything that one source has
	dryRun, yes bool
	over        int // only of sources that hold more; 0 is any
	asJSON      bool
	total       int // entries in the table, where somebody counted
}

func (e *eviction) run(c *cobra.Command) error {
	conf, err := e.inside(c.Context())
	if err != nil {
		return err
	}
	spare, err := e.spared(c.Context(), conf)
	if err != nil {
		return err
	}
	if err := tellSilence(&e.filter, conf); err != nil {
		return err
	}
	table, err := conntrack.Open()
	if err != nil {
		return err
	}
	defer table.Close()
	if e.over > 0 {
		if e.filter.Sources, err = holdingOver(c.Context(), table, conf, e.over); err != nil {
			return err
		}
		if len(e.filter.Sources) == 0 { // which would mean all of them
			return show(c.OutOrStdout(), e.asJSON, evictionReport{DryRun: e.dryRun}, func(w io.Writer) {
				fmt.Fprintf(w, "no source holds more than %d assured entries\n", e.over)
			})
		}
	}
	if e.dryRun || !e.yes {
		if err := e.preview(c, table, spare); err != nil || e.dryRun {
			return err
		}
	}
	of := ""
	if e.wholeSource {
		of = " of " + control.ShortPrefix(e.filter.Source)
	}
	deleted, err := table.Remove(c.Context(), e.filter, spare, false, nil)
	return errors.Join(show(c.OutOrStdout(), e.asJSON, evictionReport{false, deleted, e.total}, func(w io.Writer) {
		fmt.Fprintf(w, "deleted %d entries%s\n", deleted, of)
	}), err)
}

// holdingOver returns the sources that hold more assured entries than so many, of the whole table. What is closing, or
// was never answered, goes by itself, and a busy client may have much of it.
func holdingOver(ctx context.Context, table *conntrack.Table, conf config.Config, over int) ([]netip.Prefix, error) {
	census, err := table.Scan(ctx, conntrack.ScanOptions{V4Bits: conf.V4Bits, V6Bits: conf.V6Bits,
		MaxSources: mostOver})
	if err != nil {
		return nil, err
	}
	var list []netip.Prefix
	for _, s := range census.Sources {
		if s.Classes[policy.Assured] > over {
			list = append(list, s.Prefix)
		}
	}
	return list, nil
}

// mostOver bounds the sources that --over takes, the largest.
const mostOver = 1 << 16

// preview says what would go, and asks where that is much. Counting costs as much as deleting, so a source of which a
// sample says that it hasn't much is not counted.
func (e *eviction) preview(c *cobra.Command, table *conntrack.Table, spare []netip.Prefix) error {
	count, err := table.Count()
	if err != nil {
		return err
	}
	if !e.dryRun && e.wholeSource && little(c.Context(), table, e.filter.Source, count) {
		return nil
	}
	would, err := table.Remove(c.Context(), e.filter, spare, true, nil)
	if err != nil {
		return err
	}
	e.total = count
	if e.dryRun {
		return show(c.OutOrStdout(), e.asJSON, evictionReport{true, would, count}, func(w io.Writer) {
			fmt.Fprintf(w, "would delete %d of %d entries%s\n", would, count, e.ofSources())
		})
	}
	if would*mostUnasked <= count || would < screenful {
		return nil
	}
	fmt.Fprintf(c.ErrOrStderr(), "this deletes %d of %d entries%s; their connections may end. Go on? [y/N] ", would, count,
		e.ofSources())
	answer, _ := bufio.NewReader(c.InOrStdin()).ReadString('\n') // no answer is a no
	if a := strings.ToLower(strings.TrimSpace(answer)); a != "y" && a != "yes" {
		return usage(errors.New("nothing was deleted"), "--yes asks no question")
	}
	return nil
}

// ofSources says of how many sources the entries are, where --over has looked for them.
func (e *eviction) ofSources() string {
	if e.over == 0 {
		return ""
	}
	return fmt.Sprintf(", of %d sources", len(e.filter.Sources))
}

// fewSeen is how many entries a sample has: a fiftieth of what reading a million takes.
const fewSeen = 1 << 14

// little reports whether a sample of the table says for certain that so little of it is a source's that it goes without
// a question.
func little(ctx context.Context, table *conntrack.Table, source netip.Prefix, count int) bool {
	if !source.IsSingleIP() || count <= fewSeen {
		return false // not one source, or counted as soon as sampled
	}
	census, err := table.Scan(ctx, conntrack.ScanOptions{Limit: fewSeen, V4Bits: 32, V6Bits: 128})
	if err != nil || len(census.Sources) == 0 {
		return false
	}
	held := census.Sources[len(census.Sources)-1].Entries // who is not listed has no more than the last who is
	mine := 0
	for _, s := range census.Sources {
		if s.Prefix == source { // in whatever zone
			mine += s.Entries
		}
	}
	held = max(held, mine)
	_, _, most := census.Estimate(held)
	return most*mostUnasked <= count
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
