package report

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"ctguard/cmd/ctlab/internal/lab"
)

// Matrix writes a table in Markdown of attacks and guards: the share of new connections that were
// served under attack, and after it.
func Matrix(w io.Writer, results []*lab.Result) error {
	var attacks, guards []string
	cells := map[string]string{}
	for _, r := range results {
		attack, guard := r.Scenario.Topology+", "+r.Scenario.Attack, r.Scenario.Guard
		if !slices.Contains(attacks, attack) {
			attacks = append(attacks, attack)
		}
		if !slices.Contains(guards, guard) {
			guards = append(guards, guard)
		}
		cells[attack+"/"+guard] = percent(r.HTTP.During) + ", " + percent(r.HTTP.After)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "New connections served under attack, from its second second on, and after it.\n\n")
	fmt.Fprintf(&b, "| | %s |\n|%s\n", strings.Join(guards, " | "), strings.Repeat(" --- |", len(guards)+1))
	for _, a := range attacks {
		fmt.Fprintf(&b, "| %s |", a)
		for _, g := range guards {
			cell, ok := cells[a+"/"+g]
			fmt.Fprintf(&b, " %s |", choose(ok, cell, "–"))
		}
		fmt.Fprintln(&b)
	}
	_, err := io.WriteString(w, b.String())
	return err
}
