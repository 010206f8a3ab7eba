package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"ctguard/cmd/ctlab/internal/lab"
	"ctguard/cmd/ctlab/internal/report"
)

// scenarioFlags are the flags that run, demo and matrix share.
type scenarioFlags struct {
	sc          lab.Scenario
	configExtra string
	quiet       bool
}

func (f *scenarioFlags) add(fs *pflag.FlagSet) {
	fs.DurationVar(&f.sc.Calm, "calm", 0, "time before the attack (default 5s)")
	fs.DurationVar(&f.sc.AttackFor, "attack-for", 0, "time of the attack (default 8s)")
	fs.DurationVar(&f.sc.After, "after", 0, "time after the attack (default 3s)")
	fs.DurationVar(&f.sc.StartAt, "start-at", 0, "start the guard so long after the attack began, 0 for before the calm")
	fs.DurationVar(&f.sc.RestartAt, "restart-at", 0, "restart the guard so long after the attack began, 0 for never")
	fs.DurationVar(&f.sc.Settle, "settle", 0, "how much longer to wait for the baseline to return")
	fs.IntVar(&f.sc.Capacity, "capacity", 0, "entries of the table (default 65536)")
	fs.IntVar(&f.sc.Background, "background", 0, "entries of ordinary users, -1 for none (default about half)")
	fs.IntVar(&f.sc.Rate, "rate", 0, "packets or connections a second of the attack (default the attack's)")
	fs.IntVar(&f.sc.Sources, "sources", 0, "attacking sources, where they are counted (default the attack's)")
	fs.StringVar(&f.sc.CTGuard, "ctguard", besideMe(), "the ctguard binary")
	fs.StringVar(&f.configExtra, "config-extra", "", "file of TOML to merge into ctguard's configuration")
	fs.BoolVarP(&f.quiet, "quiet", "q", false, "say nothing while running")
}

// scenario is the scenario as the flags have it, with progress on w.
func (f *scenarioFlags) scenario(w io.Writer) (lab.Scenario, error) {
	sc := f.sc
	if f.configExtra != "" {
		b, err := os.ReadFile(f.configExtra)
		if err != nil {
			return sc, err
		}
		sc.ConfigExtra = string(b)
	}
	if !f.quiet {
		sc.Log = func(format string, args ...any) { _, _ = fmt.Fprintf(w, format+"\n", args...) }
	}
	return sc, nil
}

// besideMe is the path of a program in the directory of this one.
func besideMe() string {
	self, err := os.Executable()
	if err != nil {
		return "ctguard"
	}
	return filepath.Join(filepath.Dir(self), "ctguard")
}

func runCommand() *cobra.Command {
	var f scenarioFlags
	var topology, attack, guard, svg string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "run",
		Short: "run one scenario",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			sc, err := f.scenario(cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			sc.Topology, sc.Attack, sc.Guard = topology, attack, guard
			res, err := lab.Run(cmd.Context(), sc)
			if err != nil {
				return err
			}
			if svg != "" {
				if err := writeChart(cmd.ErrOrStderr(), svg, []*lab.Result{res}); err != nil {
					return err
				}
			}
			if asJSON {
				return json.NewEncoder(cmd.OutOrStdout()).Encode(res)
			}
			return report.Text(cmd.OutOrStdout(), []*lab.Result{res})
		},
	}
	fs := cmd.Flags()
	fs.StringVar(&topology, "topology", "server", "topology, see ctlab list")
	fs.StringVar(&attack, "attack", "handshake", "attack, see ctlab list")
	fs.StringVar(&guard, "guard", "none", "guard, see ctlab list")
	fs.BoolVar(&asJSON, "json", false, "print the result as JSON")
	fs.StringVar(&svg, "svg", "", "write a chart to this file")
	f.add(fs)
	return cmd
}
