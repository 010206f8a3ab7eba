package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"time"

	"github.com/spf13/cobra"

	"ctguard/agent"
	"ctguard/agent/config"
	"ctguard/agent/control"
	"ctguard/agent/state"
)

// revertReport is what `ctguard revert --json` prints, one for each namespace. Field names are stable.
type revertReport struct {
	Namespace string   `json:"namespace"`
	Done      []string `json:"done"` // in words; empty where nothing had to be put back
}

// say adds a line.
func (r *revertReport) say(format string, args ...any) {
	r.Done = append(r.Done, fmt.Sprintf(format, args...))
}

// print prints a report for people.
func (r *revertReport) print(w io.Writer) {
	for _, line := range r.Done {
		fmt.Fprintln(w, line)
	}
}

func (p *program) revertCommand() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "revert",
		Short: "go back to the baseline now, with or without the daemon",
		Long: "Revert takes back every rule and every setting of ctguard. A daemon that runs stays at level 0 for a while\n" +
			"(ctguard auto lets it go on); one that does not answer is ended; without one, what it left is put back.",
		Example: "  ctguard revert",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			conf, err := p.inside(c.Context())
			if err != nil {
				return err
			}
			if p.everywhere(conf) {
				return p.revertAll(c, conf.Namespaces, asJSON)
			}
			r := revertReport{Namespace: conf.Namespace.String(), Done: []string{}}
			err = p.revertHere(c, conf, &r)
			return errors.Join(show(c.OutOrStdout(), asJSON, r, func(w io.Writer) {
				if r.print(w); err == nil && len(r.Done) == 0 {
					fmt.Fprintln(w, "nothing to put back")
				}
			}), err)
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

// revertHere reverts the namespace that this process is in.
func (p *program) revertHere(c *cobra.Command, conf config.Config, r *revertReport) error {
	if state.Running() {
		done, err := p.askToRevert(c.Context(), r)
		if done || err != nil {
			return err
		}
	}
	done, err := agent.Revert(conf, "/")
	r.Done = append(r.Done, done...)
	return err
}

// Patience with a daemon: it answers within a tick, if at all.
const (
	revertWithin = 5 * time.Second
	killWithin   = 10 * time.Second
)

// askToRevert has the daemon take everything back. It returns false where there is still something to do: after a dry
// run, which puts nothing back, neither what it didn't change nor what an earlier run left, and after a daemon that
// does not answer, which is ended, so that the kernel removes its rules.
func (p *program) askToRevert(ctx context.Context, report *revertReport) (done bool, err error) {
	asked, cancel := context.WithTimeout(ctx, revertWithin)
	defer cancel()
	r := control.HoldRequest{For: agent.RevertFor.String(), Reason: "ctguard revert"}
	err = p.call(asked, "revert", r, nil)
	if errors.Is(err, control.ErrSilent) {
		return false, endSilent(ctx, err, report)
	}
	if err != nil {
		return false, err
	}
	report.say("the daemon is back at level 0 and stays there for %s; ctguard auto lets it go on", agent.RevertFor)
	var s control.Status
	err = p.call(asked, "status", nil, &s)
	return s.Mode != "dry-run", err
}

// endSilent ends a daemon that does not answer.
func endSilent(ctx context.Context, silent error, report *revertReport) error {
	fmt.Fprintf(os.Stderr, "ctguard: %v: it is ended\n", silent)
	ctx, cancel := context.WithTimeout(ctx, killWithin)
	defer cancel()
	pid, err := state.Kill(ctx)
	if err != nil {
		return fmt.Errorf("the daemon can't be ended: %w", err)
	}
	if pid != 0 {
		report.say("process %d killed; whoever keeps the daemon running may start it again: systemctl stop ctguard", pid)
	}
	return nil
}

// revertAll reverts one namespace after the other, each by a process in it. One that is not there does not
// keep the others from it.
func (p *program) revertAll(c *cobra.Command, namespaces []config.Namespace, asJSON bool) error {
	program, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find own program: %w", err)
	}
	var errs []error
	for _, n := range namespaces {
		args := append([]string{"revert", "--netns", n.String()}, p.arguments(false)...)
		if asJSON {
			args = append(args, "--json")
		} else {
			fmt.Fprintf(c.OutOrStdout(), "namespace %s:\n", n)
		}
		one := exec.CommandContext(c.Context(), program, args...)
		one.Stdout, one.Stderr = c.OutOrStdout(), c.ErrOrStderr()
		if err := one.Run(); err != nil {
			errs = append(errs, fmt.Errorf("namespace %s was not reverted: %w", n, err))
		}
	}
	return errors.Join(errs...)
}
