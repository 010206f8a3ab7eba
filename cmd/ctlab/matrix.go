package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/spf13/cobra"

	"ctguard/cmd/ctlab/internal/lab"
)

func matrixCommand() *cobra.Command {
	var f scenarioFlags
	var m matrixFlags
	cmd := &cobra.Command{
		Use:   "matrix",
		Short: "every attack against every guard",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if m.out != "" {
				if err := os.MkdirAll(m.out, 0o755); err != nil {
					return err
				}
			}
			var errs []error
			for _, t := range m.topologies {
				errs = append(errs, matrix(cmd, &f, m, t))
			}
			return errors.Join(errs...)
		},
	}
	fs := cmd.Flags()
	fs.StringSliceVar(&m.topologies, "topology", slices.Sorted(maps.Keys(lab.Topologies)), "topologies")
	fs.StringSliceVar(&m.attacks, "attacks", nil, "attacks (default all of the topology)")
	fs.StringSliceVar(&m.guards, "guards", nil, "guards (default all that differ, without the control run)")
	fs.StringVar(&m.out, "out", "", "directory for JSON and charts")
	f.add(fs)
	return cmd
}

type matrixFlags struct {
	topologies, attacks, guards []string
	out                         string
}

// matrixGuards are the guards to compare on a topology. A gateway's traffic is never
// untracked, so there ctguard with notrack and without it are the same.
func matrixGuards(topology string) []string {
	var names []string
	for _, g := range lab.Guards {
		if g.Name == "control" || g.Name == "ctguard-evict" && topology == "nat-gateway" {
			continue
		}
		names = append(names, g.Name)
	}
	return names
}

// matrix goes on after an attack that a guard did not stand, and fails in the end.
func matrix(cmd *cobra.Command, f *scenarioFlags, m matrixFlags, topology string) error {
	f.sc.Topology = topology
	guards, out := m.guards, m.out
	attacks := slices.DeleteFunc(lab.AttacksOn(topology), func(a string) bool {
		return len(m.attacks) > 0 && !slices.Contains(m.attacks, a)
	})
	if len(guards) == 0 {
		guards = matrixGuards(topology)
	}
	var errs []error
	for _, a := range attacks {
		f.sc.Attack = a
		results, err := compare(cmd, f, guards)
		if err != nil {
			return err
		}
		svg := ""
		if out != "" {
			svg = filepath.Join(out, f.sc.Topology+"-"+a+".svg")
			if err := writeJSON(filepath.Join(out, f.sc.Topology+"-"+a+".json"), results); err != nil {
				return err
			}
		}
		if err := show(cmd.OutOrStdout(), results, svg); err != nil {
			return err
		}
		errs = append(errs, judgeAll(a, results)...)
	}
	return errors.Join(errs...)
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

func writeJSON(path string, results []*lab.Result) error {
	b, err := json.MarshalIndent(results, "", " ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(b, '\n'), 0o644)
}
