package report

import (
	"fmt"
	"io"
	"text/tabwriter"

	"ctguard/cmd/ctlab/internal/lab"
)

// row is one line of the table: a name, and its value for a result.
type row struct {
	name  string
	value func(*lab.Result) string
}

var rows = []row{
	{"attack, a second", func(r *lab.Result) string {
		return fmt.Sprintf("%.0f of %d", r.Flood.AchievedRate, r.Flood.AskedRate)
	}},
	{"fill, calm / peak / end", func(r *lab.Result) string {
		return fmt.Sprintf("%.0f / %.0f / %.0f %%", r.Fill.Calm, r.Fill.Peak, r.Fill.End)
	}},
	{"seconds above 95 %", func(r *lab.Result) string { return fmt.Sprintf("%.1f", r.Fill.SecondsAbove) }},
	{"refused by the kernel", func(r *lab.Result) string { return fmt.Sprint(r.Fill.Drops) }},
	{"new connections served, calm", func(r *lab.Result) string { return percent(r.HTTP.Calm) }},
	{"  first second", func(r *lab.Result) string { return percent(r.HTTP.Onset) }},
	{"  from then on", func(r *lab.Result) string { return percent(r.HTTP.During) }},
	{"  after the attack", func(r *lab.Result) string { return percent(r.HTTP.After) }},
	{"  median / p99", func(r *lab.Result) string { return ms(r.HTTP.P50) + " / " + ms(r.HTTP.P99) }},
	{"  longest outage", func(r *lab.Result) string { return fmt.Sprintf("%.1f s", r.HTTP.LongestOutage) }},
	{"UDP requests served, under attack", func(r *lab.Result) string { return percent(r.UDP.During) }},
	{"onset to 99 % served", func(r *lab.Result) string { return seconds(r.SecondsToServed) }},
	{"end of attack to baseline", func(r *lab.Result) string { return seconds(r.SecondsToBaseline) }},
	{"lasting connections lost", func(r *lab.Result) string {
		return fmt.Sprintf("%d of %d", r.Lasting.Lost, r.Lasting.Opened)
	}},
	{"established connections reset", func(r *lab.Result) string { return fmt.Sprint(r.Lasting.Resets) }},
	{"silent session", func(r *lab.Result) string { return choose(r.Lasting.SessionAlive, "alive", "lost") }},
	{"inside addresses seen outside, packets", func(r *lab.Result) string { return count(r.Leaked) }},
	{"ordinary users' entries tracked at the end", func(r *lab.Result) string { return percent(r.OrdinaryKept) }},
	{"guard: highest level", func(r *lab.Result) string {
		return choose(isAgent(r), fmt.Sprint(r.MaxLevel), "–")
	}},
	{"guard: CPU, memory", func(r *lab.Result) string {
		cost := fmt.Sprintf("%.1f %%, %d MiB", r.Guard.CPUPercent, r.Guard.PeakRSSKiB/1024)
		return choose(isAgent(r), cost, "–")
	}},
	{"left behind", func(r *lab.Result) string {
		left := choose(len(r.LeftBehind) == 0, "nothing", fmt.Sprintf("%d lines", len(r.LeftBehind)))
		return choose(isAgent(r), left, "–")
	}},
}

// Text writes one table, a column for each result.
func Text(w io.Writer, results []*lab.Result) error {
	tw := tabwriter.NewWriter(w, 0, 4, 3, ' ', 0)
	put := func(format string, args ...any) { _, _ = fmt.Fprintf(tw, format, args...) } // Flush reports
	for i, r := range results {
		if i == 0 {
			put("%s", r.Scenario.Attack)
		}
		put("\t%s", r.Scenario.Guard)
	}
	put("\n")
	for _, row := range rows {
		put("%s", row.name)
		for _, r := range results {
			put("\t%s", row.value(r))
		}
		put("\n")
	}
	return tw.Flush()
}

// isAgent reports whether the guard is a process with a level.
func isAgent(r *lab.Result) bool { return r.Guard.PeakRSSKiB > 0 }

func percent(v *float64) string {
	if v == nil {
		return "–"
	}
	return fmt.Sprintf("%.1f %%", *v)
}

func count(v *uint64) string {
	if v == nil {
		return "–"
	}
	return fmt.Sprint(*v)
}

func ms(v *float64) string {
	if v == nil {
		return "–"
	}
	return fmt.Sprintf("%.1f ms", *v)
}

func seconds(v *float64) string {
	if v == nil {
		return "never"
	}
	return fmt.Sprintf("%.1f s", *v)
}

func choose(cond bool, yes, no string) string {
	if cond {
		return yes
	}
	return no
}
