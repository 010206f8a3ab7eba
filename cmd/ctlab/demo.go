package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"ctguard/cmd/ctlab/internal/lab"
	"ctguard/cmd/ctlab/internal/report"
)

// demoAttack is long enough for the flood to fill the free half of the table, and short
// enough for two runs in a minute.
const demoAttack = 12 * time.Second

// wanted is the share of new connections that protection has to keep served.
const wanted = 99.0

func demoCommand() *cobra.Command {
	var f scenarioFlags
	var attack, guard, svg string
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "one attack without and with ctguard, in under a minute",
		Long: "Demo runs the same attack twice, without a guard and with ctguard, and compares what the\n" +
			"clients got. It fails where protection did not help.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if f.sc.AttackFor == 0 && attack == "handshake" {
				f.sc.AttackFor = demoAttack
			}
			f.sc.Attack = attack
			results, err := compare(cmd, &f, []string{"none", guard})
			if err != nil {
				return err
			}
			if err := show(cmd.OutOrStdout(), results, svg); err != nil {
				return err
			}
			return judge(results[0], results[1])
		},
	}
	fs := cmd.Flags()
	fs.StringVar(&attack, "attack", "handshake", "attack, see ctlab list")
	fs.StringVar(&guard, "guard", "ctguard", "guard to compare with none")
	fs.StringVar(&svg, "svg", "", "write a chart to this file")
	f.add(fs)
	return cmd
}

// compare runs the same attack with each of the guards.
func compare(cmd *cobra.Command, f *scenarioFlags, guards []string) ([]*lab.Result, error) {
	var results []*lab.Result
	for _, g := range guards {
		sc, err := f.scenario(cmd.ErrOrStderr())
		if err != nil {
			return nil, err
		}
		sc.Guard = g
		if sc.Log != nil {
			sc.Log("\n%s, guard: %s", sc.Attack, g)
		}
		res, err := runUndisturbed(cmd.Context(), sc)
		if err != nil {
			return nil, fmt.Errorf("guard %s: %w", g, err)
		}
		results = append(results, res)
	}
	return results, nil
}

// attempts is how often a run is begun that something else on the machine disturbs.
const attempts = 3

func runUndisturbed(ctx context.Context, sc lab.Scenario) (res *lab.Result, err error) {
	for range attempts {
		if res, err = lab.Run(ctx, sc); !errors.Is(err, lab.ErrDisturbed) {
			break
		}
	}
	return res, err
}

func show(w io.Writer, results []*lab.Result, svg string) error {
	if _, err := fmt.Fprintln(w); err != nil {
		return err
	}
	if err := report.Text(w, results); err != nil {
		return err
	}
	if _, err := fmt.Fprintln(w); err != nil {
		return err
	}
	if err := report.Chart(w, results); err != nil {
		return err
	}
	if svg == "" {
		return nil
	}
	return writeChart(w, svg, results)
}

// judge says why protection did not help, if it did not.
func judge(without, with *lab.Result) error {
	err := standing(with)
	if a, b := without.HTTP.During, with.HTTP.During; a != nil && b != nil && *b <= *a {
		err = errors.Join(err, fmt.Errorf("with %s %.1f %% of new connections were served, without it %.1f %%",
			with.Scenario.Guard, *b, *a))
	}
	return err
}

// standing says in what a guard did not stand the attack.
func standing(r *lab.Result) error {
	var errs []error
	complain := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	for phase, v := range map[string]*float64{"during": r.HTTP.During, "after": r.HTTP.After} {
		switch {
		case v == nil:
			complain("the clients asked for nothing %s the attack", phase)
		case *v < wanted:
			complain("%s the attack %.1f %% of new connections were served, %.0f %% are wanted", phase, *v, wanted)
		}
	}
	for _, p := range r.Parties {
		judgeParty(p, complain)
	}
	if r.Lasting.Lost > 0 {
		complain("%d of %d lasting connections were lost", r.Lasting.Lost, r.Lasting.Opened)
	}
	if r.Lasting.Resets > 0 {
		complain("%d established connections were reset", r.Lasting.Resets)
	}
	if r.Leaked != nil && *r.Leaked > 0 {
		complain("%d packets left the gateway with an inside address, such as %q", *r.Leaked, r.LeakExamples)
	}
	if !r.Lasting.SessionAlive {
		complain("the silent session was lost")
	}
	if n := len(r.LeftBehind); n > 0 {
		complain("%s left %d lines of ruleset or settings behind, such as %q", r.Scenario.Guard, n, r.LeftBehind[0])
	}
	return errors.Join(errs...)
}

// judgeParty complains of what others than the host's clients did not get.
func judgeParty(p lab.Party, complain func(format string, args ...any)) {
	shares := map[string]*float64{"new connections": p.HTTP.During, "new connections afterwards": p.HTTP.After}
	if p.UDP.Calm != nil { // else it never asks
		shares["questions"] = p.UDP.During
	}
	for what, v := range shares {
		if v == nil || *v < p.Wanted {
			complain("%s: less than %.1f %% of %s were served: %v", p.Name, p.Wanted, what, share(v))
		}
	}
	if p.Lasting.Lost+p.Lasting.Resets > 0 || !p.Lasting.SessionAlive {
		complain("%s: %d lasting connections lost, %d reset, silent session alive: %t", p.Name, p.Lasting.Lost,
			p.Lasting.Resets, p.Lasting.SessionAlive)
	}
}

// share is a percentage for people.
func share(v *float64) string {
	if v == nil {
		return "none was asked for"
	}
	return fmt.Sprintf("%.1f %%", *v)
}
