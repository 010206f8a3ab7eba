package report

import (
	"fmt"
	"io"

	"ctguard/cmd/ctlab/internal/lab"
)

// Data writes the benchmark of the data path as a table in Markdown, each row as soon as it is known.
type Data struct {
	W   io.Writer
	Err error // the first one

	begun bool
}

func (d *Data) printf(format string, args ...any) {
	if d.Err == nil {
		_, d.Err = fmt.Fprintf(d.W, format, args...)
	}
}

// Level writes the row of one level.
func (d *Data) Level(l lab.DataLevel) {
	if !d.begun {
		d.begun = true
		d.printf("| topology | level | UDP rounds | new TCP connections | one TCP stream |\n" +
			"| --- | --- | --- | --- | --- |\n")
	}
	name := fmt.Sprintf("%d %s", l.Level, l.Step)
	if l.Step == "" {
		name = fmt.Sprint(l.Level)
	}
	if l.Limit != "" {
		name = "no ctguard: " + l.Limit
	}
	if l.Skipped != "" {
		name += " (skipped)"
	}
	d.printf("| %s | %s | %s | %s | %s |\n", l.Topology, name,
		pairs(l.UDP, "%.0f /s", 1), pairs(l.TCP, "%.0f /s", 1), pairs(l.Bulk, "%.1f Gbit/s", 8e-9*65536))
}

// pairs is a ratio, between which others, of what, and what failed.
func pairs(p lab.Pairs, unit string, scale float64) string {
	if p.None == 0 {
		return "–"
	}
	s := fmt.Sprintf("%.2f × (%.2f–%.2f) of "+unit, p.Ratio, p.Least, p.Most, p.None*scale)
	if p.FailedWith+p.FailedNone > 0 {
		s += fmt.Sprintf("; %d failed, %d without", p.FailedWith, p.FailedNone)
	}
	return s
}

// Drops writes the second table.
func (d *Data) Drops(c lab.DropCost) {
	d.printf("\n| packets of one source network, dropped | on one processor | against input " +
		"| a packet, beyond sending | against input |\n")
	d.printf("| --- | --- | --- | --- | --- |\n")
	row := func(name string, rate, ratio, net float64) {
		cheaper := choose(net > 0, fmt.Sprintf("%.2f × cheaper", net), "–")
		d.printf("| %s | %.0f /s | %.2f × | %.0f ns | %s |\n", name, rate, ratio, 1e9/rate-1e9/c.Ingress, cheaper)
	}
	row("blocked by ctguard, before conntrack", c.Blocked, c.BlockedRatio, c.BlockedNet)
	row("limited by ctguard, before conntrack", c.Limited, c.LimitedRatio, c.LimitedNet)
	row("by a rule of the host's at input, after conntrack", c.Late, 1, 1)
	d.printf("| at the link's ingress | %.0f /s | %.2f × | – | – |\n", c.Ingress, c.Ingress/c.Late)
}
