package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/spf13/cobra"

	"ctguard/cmd/ctlab/internal/lab"
)

func matrixCommand() *cobra.Command {
	var f scenarioFlags
	var attacks, guards []string
	var topology, out string
	cmd := &cobra.Command{
		Use:   "matrix",
		Short: "every attack against every guard",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			f.sc.Topology = topology
			return matrix(cmd, &f, attacks, guards, out)
		},
	}
	fs := cmd.Flags()
	fs.StringVar(&topology, "topology", "server", "topology, see ctlab list")
	fs.StringSliceVar(&attacks, "attacks", nil, "attacks (default all of the topology)")
	fs.StringSliceVar(&guards, "guards", nil, "guards (default all)")
	fs.StringVar(&out, "out", "", "directory for JSON and charts")
	f.add(fs)
	return cmd
}

// matrix goes on after an attack that a guard did not stand, and fails in the end.
func matrix(cmd *cobra.Command, f *scenarioFlags, attacks, guards []string, out string) error {
	if len(attacks) == 0 {
		attacks = lab.AttacksOn(f.sc.Topology)
	}
	if len(guards) == 0 {
		for _, g := range lab.Guards {
			guards = append(guards, g.Name)
		}
	}
	if out != "" {
		if err := os.MkdirAll(out, 0o755); err != nil {
			return err
		}
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
