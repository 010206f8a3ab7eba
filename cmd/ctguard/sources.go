package main

import (
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"ctguard/agent/conntrack"
	"ctguard/policy"
)

// sourcesReport is what `ctguard sources --json` prints. Field names are stable.
type sourcesReport struct {
	Total     int            `json:"total"` // entries in the table
	Seen      int            `json:"seen"`  // entries that were looked at
	Whole     bool           `json:"whole"` // every entry was
	Distinct  int            `json:"distinct_sources"`
	Classes   map[string]int `json:"states"` // estimates, like all that follows
	Protocols map[string]int `json:"protocols"`
	Ports     []portReport   `json:"ports"`
	Sources   []sourceReport `json:"sources"`
}

type portReport struct {
	Protocol string `json:"protocol"`
	Port     uint16 `json:"port"`
	Entries  int    `json:"entries"`
}

type sourceReport struct {
	Prefix  netip.Prefix   `json:"prefix"`
	Zone    uint16         `json:"zone,omitempty"` // conntrack zone; absent in the default one
	Entries int            `json:"entries"`
	Low     int            `json:"at_least"` // lower bound of the estimate
	High    int            `json:"at_most"`
	States  map[string]int `json:"states"`
}

func (p *program) sourcesCommand() *cobra.Command {
	var n int
	var full, asJSON bool
	var by string
	c := &cobra.Command{
		Use:   "sources",
		Short: "show who holds the table, by source, state, protocol and port",
		Long: "Sources needs no daemon. It looks at a sample of a large table and says how sure its numbers are;\n" +
			"--full looks at every entry. --by counts every entry by something else.",
		Example: "  ctguard sources\n  ctguard sources -n 50 --full\n  ctguard sources --by port\n" +
			"  ctguard sources --json | jq '.sources[0]'",
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if n < 1 {
				return usage(fmt.Errorf("-n %d is below 1", n), "")
			}
			if !slices.Contains(groupNames(), by) {
				return usage(fmt.Errorf("--by %s is unknown", by), "write one of "+strings.Join(groupNames(), " "))
			}
			conf, err := p.inside(c.Context())
			if err != nil {
				return err
			}
			table, err := conntrack.Open()
			if err != nil {
				return err
			}
			defer table.Close()
			if by != "source" {
				report, err := countBy(c.Context(), table, by, n, conf)
				if err != nil {
					return err
				}
				return show(c.OutOrStdout(), asJSON, report, report.print)
			}
			options := conntrack.ScanOptions{V4Bits: conf.V4Bits, V6Bits: conf.V6Bits, MaxSources: n,
				Limit: conntrack.SampleSize}
			if full {
				options.Limit = 0
			}
			census, err := table.Scan(c.Context(), options)
			if err != nil {
				return err
			}
			report := newSourcesReport(census)
			return show(c.OutOrStdout(), asJSON, report, func(w io.Writer) { printSources(w, report, census.Took) })
		},
	}
	c.Flags().IntVarP(&n, "number", "n", 20, "how many to show")
	c.Flags().StringVar(&by, "by", "source", "what to count by: "+strings.Join(groupNames(), " "))
	c.Flags().BoolVar(&full, "full", false, "look at every entry, not at a sample")
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

// newSourcesReport turns a census into a report, scaled to the whole table.
func newSourcesReport(census *policy.Census) sourcesReport {
	mid := func(seen int) int { m, _, _ := census.Estimate(seen); return m }
	states := func(classes [policy.NumClasses]int) map[string]int {
		all := make(map[string]int)
		for class, seen := range classes {
			if seen > 0 {
				all[policy.Class(class).String()] = mid(seen)
			}
		}
		return all
	}
	r := sourcesReport{Total: census.Total, Seen: census.Seen, Whole: census.Whole, Distinct: census.Distinct,
		Classes: states(census.Classes), Protocols: make(map[string]int), Ports: []portReport{}, Sources: []sourceReport{}}
	for number, seen := range census.Protocols {
		r.Protocols[conntrack.ProtocolName(number)] = mid(seen)
	}
	for _, port := range census.Ports {
		r.Ports = append(r.Ports, portReport{conntrack.ProtocolName(port.Protocol), port.Port, mid(port.Entries)})
	}
	for _, s := range census.Sources {
		m, low, high := census.Estimate(s.Entries)
		r.Sources = append(r.Sources, sourceReport{s.Prefix, s.Zone, m, low, high, states(s.Classes)})
	}
	return r
}

// printSources prints a report for people.
func printSources(w io.Writer, r sourcesReport, took time.Duration) {
	how := fmt.Sprintf("all %d entries", r.Seen)
	if !r.Whole {
		how = fmt.Sprintf("a sample of %d of %d entries (--full looks at all)", r.Seen, r.Total)
	}
	fmt.Fprintf(w, "%s, %d sources, in %s\n\n", how, r.Distinct, took.Round(time.Millisecond))
	t := tabwriter.NewWriter(w, 0, 4, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "entries\tat least\tunreplied\thalf-open\tclosing\treplied\tassured\t  source")
	for _, s := range r.Sources {
		fmt.Fprintf(t, "%d\t%d\t%d\t%d\t%d\t%d\t%d\t  %s\n", s.Entries, s.Low, s.States["unreplied"], s.States["half-open"],
			s.States["closing"], s.States["replied"], s.States["assured"], policy.Source{Prefix: s.Prefix, Zone: s.Zone}.Short())
	}
	t.Flush()
	fmt.Fprintln(w)
	for _, port := range r.Ports[:min(10, len(r.Ports))] {
		fmt.Fprintf(w, "%8d  to %s/%d\n", port.Entries, port.Protocol, port.Port)
	}
}
