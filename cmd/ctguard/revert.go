package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"

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
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			conf, err := p.inside(c.Context())
			if err != nil {
				return err
			}
			if p.everywhere(conf) {
				return p.revertAll(c, conf.Namespaces)
			}
			if state.Running() {
				r := control.HoldRequest{For: agent.RevertFor.String(), Reason: "ctguard revert"}
				if err := p.call(c.Context(), "revert", r, nil); err != nil {
					return err
				}
				fmt.Fprintf(c.OutOrStdout(), "the daemon is back at level 0 and stays there for %s; ctguard auto lets it go on\n",
					agent.RevertFor)
				var s control.Status
				if err := p.call(c.Context(), "status", nil, &s); err != nil || s.Mode != "dry-run" {
					return err
				}
				// A dry run puts nothing back, neither what it didn't change nor what an earlier run left.
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
