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

// builders make the commands that only the build's own program has (man.go).
var builders []func() *cobra.Command

// newCommand returns the whole command line.
func newCommand() *cobra.Command {
	p := &program{}
	root := &cobra.Command{
		Use:           "ctguard",
		Short:         "keep the connection-tracking table from filling up",
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
			if err := check(c, args); err != nil {
				return usage(err, hint)
			}
			return nil
		}
	}
	for _, sub := range c.Commands() {
		wrongUsage(sub)
	}
}
