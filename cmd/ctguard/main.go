package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"ctguard/agent/config"
	"ctguard/agent/control"
	"ctguard/policy"
)

// Exit codes.
const (
	exitFailed   = 1
	exitUsage    = 2 // wrong usage or configuration
	exitNoDaemon = 3
	exitWarnings = 4 // of audit
	exitCritical = 5 // of audit
	exitStalled  = 6 // of run: the loop hung, and the process ended so that its rules go
)

func main() { os.Exit(run()) }

// run is main with an exit code, for the tests.
func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	err := newCommand().ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	var coded *codedError
	if !errors.As(err, &coded) {
		coded = &codedError{error: err, code: exitFailed}
	}
	if coded.error != nil {
		for line := range strings.Lines(coded.Error()) {
			fmt.Fprintln(os.Stderr, "ctguard: "+strings.TrimSuffix(line, "\n"))
		}
	}
	if coded.hint != "" {
		fmt.Fprintln(os.Stderr, "hint: "+coded.hint)
	}
	return coded.code
}

// codedError is an error with an exit code and, where the operator can do something, a hint.
type codedError struct {
	error
	code int
	hint string
}

// Unwrap returns the error inside.
func (e *codedError) Unwrap() error { return e.error }

// usage makes an error of wrong usage or configuration.
func usage(err error, hint string) error { return &codedError{err, exitUsage, hint} }

// program is what all commands share.
type program struct {
	configPath string
	given      bool   // --config was given: the file must exist
	netns      string // what --netns says
	namespace  config.Namespace
	client     *control.Client // one for all calls: each keeps a connection
}

// config loads the configuration of the namespace that the command is about.
func (p *program) config() (config.Config, error) {
	c, err := config.Load(p.configPath, !p.given)
	if err != nil {
		return c, usage(err, "ctguard check FILE validates a configuration; "+
			"every key is explained in docs/examples/ctguard.toml")
	}
	return c.In(p.namespace), nil
}

// everywhere reports whether a command is about all namespaces that the configuration has.
func (p *program) everywhere(c config.Config) bool { return p.netns == "" && len(c.Namespaces) > 0 }

// levels lists the steps of the whole ladder, a line each.
func levels() string {
	var b strings.Builder
	for i, name := range policy.StepNames() {
		fmt.Fprintf(&b, "    %d %-14s %s\n", i+1, name, name.Summary())
	}
	return b.String()
}

// about is what somebody reads first, maybe with a full table: the manual page takes it as Markdown.
var about = `ctguard keeps a Linux host's connection-tracking table from filling up. It watches how full the table is
and who fills it, climbs a ladder of reversible steps while pressure lasts, and takes every step back when it subsides.
It needs root, and no configuration.

When the table is full now ("nf_conntrack: table full, dropping packet"):

    systemctl start ctguard   # or: ctguard run in a terminal of its own, until Ctrl-C, which takes everything back
    ctguard status            # how full, what it does about it and why; its second line has the last refused flow
    ctguard sources           # who holds the table: needs no daemon
    ctguard events --follow   # what changes, why, and what it brought

Clients are served again within seconds, unless all of the table is conversations that were there before ctguard: it
takes nobody's as long as it does not know who is usually here. Then ctguard sources shows how much is far too much, and

    ctguard evict --over 200 --dry-run    # how many entries that are; without --dry-run they go

makes room. Do not flush the table (conntrack -F): behind NAT that cuts everybody. If one
source is to blame, hold it back first, then let what it holds go:

    ctguard limit 198.51.100.7 --for 1h --reason "scanner"
    ctguard evict 198.51.100.7

A level is how many steps may be engaged, in this order:

` + levels() + `
If you think that ctguard itself is in the way:

    ctguard hold 0 --for 30m --reason "is it ctguard?"   # it only looks on; ctguard auto ends that
    ctguard explain 198.51.100.7                         # why somebody is, or is not, limited
    ctguard release 198.51.100.7                         # leave them alone
    ctguard revert                                       # everything as it was, with or without the daemon

Before you trust it: ctguard audit and ctguard plan write nothing, and ctguard run --dry-run decides and tells.

Files: /etc/ctguard/ctguard.toml (it may be absent), /run/ctguard/ctguard.sock, /var/lib/ctguard.
Exit codes: 0 fine, 1 failed, 2 wrong usage or configuration, 3 no daemon; audit: 4 warnings, 5 critical.`

// builders make the commands that only the build's own program has (man.go).
var builders []func() *cobra.Command

// newCommand returns the whole command line.
func newCommand() *cobra.Command {
	p := &program{}
	root := &cobra.Command{
		Use:           "ctguard",
		Short:         "keep the connection-tracking table from filling up",
		Long:          about,
		Example:       "  ctguard audit\n  ctguard run --dry-run\n  ctguard status",
		SilenceErrors: true, SilenceUsage: true,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return fmt.Errorf("unknown command %q", args[0])
			}
			return nil
		},
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
		PersistentPreRunE: func(c *cobra.Command, _ []string) (err error) {
			p.given = c.Flags().Changed("config")
			if c.Flags().Changed("netns") {
				if p.namespace, err = config.ParseNamespace(p.netns); err != nil {
					return usage(err, "ip netns list shows their names")
				}
			}
			return nil
		},
	}
	root.CompletionOptions.HiddenDefaultCmd = true
	root.PersistentFlags().StringVar(&p.configPath, "config", config.DefaultPath, "configuration file")
	root.PersistentFlags().StringVar(&p.netns, "netns", "",
		"network namespace: a name of ip-netns(8), or a path such as /proc/PID/ns/net (default the one this is started in)")
	root.AddCommand(p.runCommand(), p.statusCommand(), p.topCommand(), p.sourcesCommand(),
		p.flowsCommand(), p.sizeCommand(),
		p.auditCommand(),
		p.planCommand(), p.holdCommand(),
		p.autoCommand(),
		p.limitCommand(), p.releaseCommand(), p.eventsCommand(), p.evictCommand(), p.revertCommand(), p.checkCommand(),
		p.explainCommand(), p.replayCommand(), versionCommand())
	for _, build := range builders {
		root.AddCommand(build())
	}
	wrongUsage(root)
	return root
}

// wrongUsage gives wrong flags and arguments of every command the exit code of wrong usage.
func wrongUsage(c *cobra.Command) {
	hint := c.CommandPath() + " --help"
	c.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usage(err, hint) })
	if check := c.Args; check != nil {
		c.Args = func(c *cobra.Command, args []string) error {
			// Flags that exclude each other are looked at here, for nothing else gives them an exit code.
			if err := errors.Join(check(c, args), c.ValidateFlagGroups()); err != nil {
				return usage(err, hint)
			}
			return nil
		}
	}
	for _, sub := range c.Commands() {
		wrongUsage(sub)
	}
}
