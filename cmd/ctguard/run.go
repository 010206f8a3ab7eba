package main

import (
	"log/slog"
	"os"
	"os/signal"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"ctguard/agent"
)

func (p *program) runCommand() *cobra.Command {
	var dryRun bool
	var record string
	c := &cobra.Command{
		Use:   "run",
		Short: "guard the table until SIGTERM; SIGHUP reads the configuration again",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			config, err := p.config()
			if err != nil {
				return err
			}
			hup := make(chan os.Signal, 1)
			signal.Notify(hup, unix.SIGHUP)
			a, err := agent.New(config, agent.Options{DryRun: dryRun, Record: record, Root: "/", Log: logger(), Ready: func() {
				_, _ = daemon.SdNotify(false, daemon.SdNotifyReady) // no systemd is no fault
			}})
			if err != nil {
				return err
			}
			return a.Run(c.Context(), hup)
		},
	}
	c.Flags().BoolVar(&dryRun, "dry-run", false, "decide and tell, but change nothing")
	c.Flags().StringVar(&record, "record", "", "write observations and decisions to this new file, for ctguard replay")
	return c
}

// logger writes text on a terminal and JSON otherwise.
func logger() *slog.Logger {
	if term.IsTerminal(int(os.Stderr.Fd())) {
		return slog.New(slog.NewTextHandler(os.Stderr, nil))
	}
	return slog.New(slog.NewJSONHandler(os.Stderr, nil))
}
