package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"time"

	"github.com/spf13/cobra"

	"ctguard/agent"
	"ctguard/agent/config"
	"ctguard/agent/control"
	"ctguard/agent/state"
)

func (p *program) revertCommand() *cobra.Command {
	return &cobra.Command{
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
				return p.revertAll(c, conf.Namespaces)
			}
			if state.Running() {
				done, err := p.askToRevert(c)
				if done || err != nil {
					return err
				}
			}
			done, err := agent.Revert(conf, "/")
			for _, line := range done {
				fmt.Fprintln(c.OutOrStdout(), line)
			}
			if err == nil && len(done) == 0 {
				fmt.Fprintln(c.OutOrStdout(), "nothing to put back")
			}
			return err
		},
	}
}

// Patience with a daemon: it answers within a tick, if at all.
const (
	revertWithin = 5 * time.Second
	killWithin   = 10 * time.Second
)

// askToRevert has the daemon take everything back. It returns false where there is still something to do: after a dry
// run, which puts nothing back, neither what it didn't change nor what an earlier run left, and after a daemon that
// does not answer, which is ended, so that the kernel removes its rules.
func (p *program) askToRevert(c *cobra.Command) (done bool, err error) {
	ctx, cancel := context.WithTimeout(c.Context(), revertWithin)
	defer cancel()
	r := control.HoldRequest{For: agent.RevertFor.String(), Reason: "ctguard revert"}
	err = p.call(ctx, "revert", r, nil)
	if errors.Is(err, control.ErrSilent) {
		return false, endSilent(c, err)
	}
	if err != nil {
		return false, err
	}
	fmt.Fprintf(c.OutOrStdout(), "the daemon is back at level 0 and stays there for %s; ctguard auto lets it go on\n",
		agent.RevertFor)
	var s control.Status
	err = p.call(ctx, "status", nil, &s)
	return s.Mode != "dry-run", err
}

// endSilent ends a daemon that does not answer.
func endSilent(c *cobra.Command, silent error) error {
	fmt.Fprintf(c.ErrOrStderr(), "ctguard: %v: it is ended\n", silent)
	ctx, cancel := context.WithTimeout(c.Context(), killWithin)
	defer cancel()
	pid, err := state.Kill(ctx)
	if err != nil {
		return fmt.Errorf("the daemon can't be ended: %w", err)
	}
	if pid != 0 {
		fmt.Fprintf(c.OutOrStdout(), "process %d killed; whoever keeps the daemon running may start it again: "+
			"systemctl stop ctguard\n", pid)
	}
	return nil
}

// revertAll reverts one namespace after the other, each by a process in it. One that is not there does not
// keep the others from it.
func (p *program) revertAll(c *cobra.Command, namespaces []config.Namespace) error {
	program, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find own program: %w", err)
	}
	var errs []error
	for _, n := range namespaces {
		fmt.Fprintf(c.OutOrStdout(), "namespace %s:\n", n)
		one := exec.CommandContext(c.Context(), program, append([]string{"revert", "--netns", n.String()},
			p.arguments(false)...)...)
		one.Stdout, one.Stderr = c.OutOrStdout(), c.ErrOrStderr()
		if err := one.Run(); err != nil {
			errs = append(errs, fmt.Errorf("namespace %s was not reverted: %w", n, err))
		}
	}
	return errors.Join(errs...)
}
