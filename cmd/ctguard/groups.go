package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"text/tabwriter"

	"ctguard/agent/config"
	"ctguard/agent/conntrack"
)

// groupKeys say what entries are counted by, beside the source.
var groupKeys = map[string]func(conntrack.Entry, config.Config) string{
	"network": func(e conntrack.Entry, c config.Config) string {
		bits := c.Policy.FoldV4
		if e.Source.Addr().Is6() {
			bits = c.Policy.FoldV6
		}
		return netip.PrefixFrom(e.Source.Addr(), bits).Masked().String()
	},
	"destination": func(e conntrack.Entry, _ config.Config) string { return e.Destination.Addr().String() },
	"port": func(e conntrack.Entry, _ config.Config) string {
		if e.Destination.Port() == 0 {
			return conntrack.ProtocolName(e.Protocol)
		}
		return fmt.Sprintf("%s/%d", conntrack.ProtocolName(e.Protocol), e.Destination.Port())
	},
	"state": func(e conntrack.Entry, _ config.Config) string {
		return strings.TrimSpace(conntrack.ProtocolName(e.Protocol) + " " + e.State)
	},
	"zone": func(e conntrack.Entry, _ config.Config) string { return fmt.Sprint(e.Zone) },
}

// groupNames lists what --by takes.
func groupNames() []string {
	return append([]string{"source"}, slices.Sorted(maps.Keys(groupKeys))...)
}

// groupsReport is what `ctguard sources --by KEY --json` prints. Field names are stable.
type groupsReport struct {
	By       string        `json:"by"`
	Total    int           `json:"total"`    // entries in the table
	Distinct int           `json:"distinct"` // groups, listed or not
	Groups   []groupReport `json:"groups"`   // the largest first
}

type groupReport struct {
	Key       string `json:"key"`
	Entries   int    `json:"entries"`
	Assured   int    `json:"assured"`
	Unreplied int    `json:"unreplied"`
}

// countBy counts every entry of the table by a key, and keeps the n largest groups.
func countBy(ctx context.Context, table *conntrack.Table, by string, n int, conf config.Config) (groupsReport, error) {
	groups := make(map[string]*groupReport)
	report := groupsReport{By: by, Groups: []groupReport{}}
	err := table.Entries(ctx, conntrack.EntryFilter{}, func(e conntrack.Entry) bool {
		key := groupKeys[by](e, conf)
		g := groups[key]
		if g == nil {
			g = &groupReport{Key: key}
			groups[key] = g
		}
		report.Total++
		g.Entries++
		if e.Assured {
			g.Assured++
		}
		if !e.Replied {
			g.Unreplied++
		}
		return true
	})
	for _, g := range groups {
		report.Groups = append(report.Groups, *g)
	}
	slices.SortFunc(report.Groups, func(a, b groupReport) int {
		return cmp.Or(b.Entries-a.Entries, strings.Compare(a.Key, b.Key))
	})
	report.Distinct = len(report.Groups)
	report.Groups = report.Groups[:min(n, len(report.Groups))]
	return report, err
}

func (r groupsReport) print(w io.Writer) {
	fmt.Fprintf(w, "all %d entries by %s, %d in all\n\n", r.Total, r.By, r.Distinct)
	t := tabwriter.NewWriter(w, 0, 4, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(t, "entries\tassured\tunreplied\t  %s\n", r.By)
	for _, g := range r.Groups {
		fmt.Fprintf(t, "%d\t%d\t%d\t  %s\n", g.Entries, g.Assured, g.Unreplied, g.Key)
	}
	t.Flush()
}
