package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"ctguard/cmd/ctlab/internal/lab"
	"ctguard/cmd/ctlab/internal/report"
)

func matrixCommand() *cobra.Command {
	var f scenarioFlags
	var o matrixFlags
	cmd := &cobra.Command{
		Use:   "matrix",
		Short: "every attack against every guard, in a quarter of an hour",
		Long: "Matrix runs every attack of every topology against every guard that differs there, and shows\n" +
			"a table for each attack and one of all. Phases are only as long as there is something to see,\n" +
			"unless they are given. It goes on after an attack that ctguard did not stand, and fails in the\n" +
			"end; what was measured is shown and written when it is interrupted, too.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			m := &matrix{flags: &f, out: cmd.OutOrStdout(), progress: cmd.ErrOrStderr(), dir: o.out, run: runUndisturbed}
			if f.quiet {
				m.progress = io.Discard
			}
			f.quiet = true // the matrix has its own words
			return m.all(cmd.Context(), o.plan())
		},
	}
	fs := cmd.Flags()
	fs.StringSliceVar(&o.topologies, "topology", usualTopologies(), "topologies ("+strings.Join(onDemand, ", ")+
		" are run when they are asked for)")
	fs.StringSliceVar(&o.attacks, "attacks", nil, "attacks (default all of the topology)")
	fs.StringSliceVar(&o.guards, "guards", nil, "guards (default all that differ, without the control run and fail2ban)")
	fs.StringVar(&o.out, "out", "", "directory for JSON and charts")
	f.add(fs)
	return cmd
}

// onDemand are the topologies that are left out otherwise.
var onDemand = []string{"by-state", "routed", "routed-open", "mixed", "uplinks", "zones", "overlay", "resolver",
	"listener", "loopback"}

// usualTopologies are those of which the whole matrix takes a quarter of an hour.
func usualTopologies() []string {
	return slices.DeleteFunc(slices.Sorted(maps.Keys(lab.Topologies)), func(t string) bool {
		return slices.Contains(onDemand, t)
	})
}

type matrixFlags struct {
	topologies, attacks, guards []string
	out                         string
}

// contest is one attack on one topology, and the guards that stand it.
type contest struct {
	topology, attack string
	guards           []string
}

// plan is what to run, in this order.
func (o matrixFlags) plan() []contest {
	var plan []contest
	for _, t := range o.topologies {
		for _, a := range lab.AttacksOn(t) {
			if len(o.attacks) > 0 && !slices.Contains(o.attacks, a.Name) || len(o.attacks) == 0 && a.OnDemand {
				continue
			}
			guards := o.guards
			if len(guards) == 0 {
				guards = matrixGuards(t, a)
			}
			plan = append(plan, contest{t, a.Name, guards})
		}
	}
	return plan
}

// matrixGuards are the guards to compare in an attack on a topology.
func matrixGuards(topology string, a lab.Attack) []string {
	var names []string
	for _, g := range lab.Guards {
		if !g.Optional && g.Name != "control" && !sameAgain(g.Name, topology, a) {
			names = append(names, g.Name)
		}
	}
	return names
}

// sameAgain reports whether a guard does in an attack what it, or one beside it, does in another. What the users of a
// gateway ask for is never untracked, so there ctguard with notrack and without it are the same. Nothing, and the usual
// advice, do not look at sources, so a variant shows nothing new of them. In a flood that only its crowd makes a
// new one, a guard that leaves services untracked, or has one limit for all, has nothing new to show. What all but
// ctguard do with a service does not depend on whether it is forwarded, and nobody else looks at which way packets go.
func sameAgain(guard, topology string, a lab.Attack) bool {
	switch topology {
	case "mixed", "uplinks", "zones":
		return guard != "ctguard" && guard != "none"
	case "forwarded", "one-way":
		return guard != "ctguard"
	case "load-balancers": // as behind a carrier's NAT, with two addresses
		return true
	case "shared-address":
		return guard != "ctguard-evict"
	}
	switch guard {
	case "none":
		return a.Variant && !a.Crowd
	case "advice":
		return a.Variant
	case "static", "ctguard":
		return a.Crowd
	case "ctguard-evict":
		return topology == "nat-gateway"
	}
	return false
}

// matrix is a run of many scenarios.
type matrix struct {
	flags         *scenarioFlags
	out, progress io.Writer
	dir           string // for files; empty: none
	run           func(context.Context, lab.Scenario) (*lab.Result, error)

	began   time.Time
	results []*lab.Result
	errs    []error
}

// all runs everything. A run that fails is told and left out.
func (m *matrix) all(ctx context.Context, plan []contest) error {
	if m.dir != "" {
		if err := os.MkdirAll(m.dir, 0o755); err != nil {
			return err
		}
	}
	m.began = time.Now()
	total, done := 0, 0
	for _, c := range plan {
		total += len(c.guards)
	}
	for _, c := range plan {
		if ctx.Err() != nil {
			break
		}
		m.note(m.contest(ctx, c, func(guard string, length time.Duration) {
			done++
			_, _ = fmt.Fprintf(m.progress, "[%d/%d, %v] %s: %s, guard: %s, for %v\n",
				done, total, time.Since(m.began).Round(time.Second), c.topology, c.attack, guard, length)
		}))
	}
	if ctx.Err() != nil {
		m.note(fmt.Errorf("interrupted after %d of %d runs", len(m.results), total))
	}
	m.note(m.summary())
	return errors.Join(m.errs...)
}

func (m *matrix) note(err error) {
	if err != nil {
		m.errs = append(m.errs, err)
	}
}

// contest runs one attack against its guards. Its results are written after each run.
func (m *matrix) contest(ctx context.Context, c contest, begin func(guard string, length time.Duration)) error {
	var results []*lab.Result
	for _, g := range c.guards {
		sc, err := m.flags.scenario(io.Discard)
		if err != nil {
			return err
		}
		sc.Topology, sc.Attack, sc.Guard = c.topology, c.attack, g
		sc = lab.Brief(sc)
		begin(g, sc.Length())
		res, err := m.run(ctx, sc)
		if ctx.Err() != nil {
			break
		}
		if err != nil {
			m.note(fmt.Errorf("%s, guard %s: %w", c.attack, g, err))
			continue
		}
		results, m.results = append(results, res), append(m.results, res)
		if err := m.write(c.name()+".json", results); err != nil {
			return err
		}
	}
	if len(results) == 0 {
		return nil
	}
	m.errs = append(m.errs, judgeAll(c.attack, results)...)
	svg := ""
	if m.dir != "" {
		svg = filepath.Join(m.dir, c.name()+".svg")
	}
	return show(m.out, results, svg)
}

func (c contest) name() string { return c.topology + "-" + c.attack }

// write writes results to a file of the directory, if there is one.
func (m *matrix) write(name string, results []*lab.Result) error {
	if m.dir == "" {
		return nil
	}
	b, err := json.MarshalIndent(results, "", " ")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(m.dir, name), append(b, '\n'), 0o644)
}

// summary shows all attacks and guards in one table.
func (m *matrix) summary() error {
	if len(m.results) == 0 {
		return nil
	}
	if _, err := fmt.Fprintln(m.out); err != nil {
		return err
	}
	if err := report.Matrix(m.out, m.results); err != nil {
		return err
	}
	if m.dir == "" {
		return nil
	}
	f, err := os.Create(filepath.Join(m.dir, "matrix.md"))
	if err != nil {
		return err
	}
	return errors.Join(report.Matrix(f, m.results), f.Close())
}

// judgeAll judges ctguard's results, each against its own demands; where the attack hurts
// nobody, being no worse is all there is to reach.
func judgeAll(attack string, results []*lab.Result) []error {
	var errs []error
	for _, r := range results {
		if !slices.Contains([]string{"ctguard", "ctguard-evict"}, r.Scenario.Guard) {
			continue
		}
		if err := standing(r); err != nil {
			errs = append(errs, fmt.Errorf("%s, %s: %w", attack, r.Scenario.Guard, err))
		}
	}
	return errs
}
