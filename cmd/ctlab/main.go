package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"syscall"

	"github.com/spf13/cobra"

	"ctguard/cmd/ctlab/internal/lab"
	"ctguard/cmd/ctlab/internal/role"
)

// The main goroutine keeps the main thread: namespaces live in other threads,
// which end when they are closed, and the main thread cannot.
func init() { runtime.LockOSThread() }

func main() {
	role.Hook(lab.Roles())
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := rootCommand().ExecuteContext(ctx); err != nil {
		fmt.Fprintf(os.Stderr, "ctlab: %v\n", err)
		os.Exit(1) //nolint:gocritic // stop only unregisters signals
	}
}

func rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:           "ctlab",
		Short:         "attack a host of its own, and show what its clients get",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.AddCommand(demoCommand(), listCommand(), matrixCommand(), runCommand(), benchTableCommand(),
		benchTableChildCommand(),
		benchDataCommand(), benchScaleCommand())
	return root
}
