package main

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"os/signal"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"ctguard/agent"
)

func (p *program) runCommand() *cobra.Command {
	var dryRun bool
	var record string
	c := &cobra.Command{
		Use:     "run",
		Short:   "guard the table until SIGTERM, or the tables of all namespaces of the configuration; SIGHUP reads it again",
		Example: "  ctguard run --dry-run\n  ctguard run\n  ctguard run --record attack.gz",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			conf, err := p.inside(c.Context())
			if err != nil {
				return err
			}
			// Who reads the log may be restarted, as journald is. Go ends a process that then writes to it, and systemd
			// takes that end for a clean one.
			signal.Ignore(unix.SIGPIPE)
			hup := make(chan os.Signal, 1)
			signal.Notify(hup, unix.SIGHUP)
			if p.everywhere(conf) {
				if record != "" {
					return usage(errors.New("--record is of one namespace, and the configuration has several"),
						"ctguard run --netns NAME --record FILE")
				}
				return supervise(c.Context(), hup, conf.Namespaces, p.arguments(dryRun), logger())
			}
			log := logger()
			if p.netns != "" {
				log = log.With("namespace", p.namespace.String())
			}
			a, err := agent.New(conf, agent.Options{DryRun: dryRun, Record: record, Root: "/", Log: log,
				Ready: announce, Alive: newPulse(c.Context()).beat, Stalled: stalled, Calm: new(processors).calm})
			if err != nil {
				return err
			}
			ctx, cancel := whileNamed(c.Context(), p.namespace)
			defer cancel(nil)
			err = a.Run(ctx, hup)
			if cause := context.Cause(ctx); err == nil && !errors.Is(cause, context.Canceled) {
				return cause
			}
			return err
		},
	}
	c.Flags().BoolVar(&dryRun, "dry-run", false, "decide and tell, but change nothing")
	c.Flags().StringVar(&record, "record", "", "write observations and decisions to this new file, for ctguard replay")
	return c
}

// arguments returns those of an agent that is to run as this program was told to.
func (p *program) arguments(dryRun bool) []string {
	var list []string
	if p.given {
		list = append(list, "--config", p.configPath)
	}
	if dryRun {
		list = append(list, "--dry-run")
	}
	return list
}

// logger writes text on a terminal and JSON otherwise.
func logger() *slog.Logger {
	if term.IsTerminal(int(os.Stderr.Fd())) {
		return slog.New(slog.NewTextHandler(os.Stderr, nil))
	}
	return slog.New(slog.NewJSONHandler(os.Stderr, nil))
}
