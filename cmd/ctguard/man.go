//go:build man

package main

import (
	"os"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"

	"ctguard/agent"
)

// The build makes the manual pages with a program of its own (-tags man), so that what is installed does not carry
// what makes them.
func init() {
	builders = append(builders, func() *cobra.Command {
		return &cobra.Command{
			Use:    "man DIR",
			Hidden: true,
			Args:   cobra.ExactArgs(1),
			RunE:   func(c *cobra.Command, args []string) error { return writeManual(c.Root(), args[0]) },
		}
	})
}

// writeManual writes a manual page for each command into a directory.
func writeManual(root *cobra.Command, dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	root.DisableAutoGenTag = true
	root.Use = "ctguard COMMAND"
	root.Long += "\n\nCommands:\n\n"
	for _, c := range root.Commands() {
		if c.IsAvailableCommand() {
			root.Long += "- **" + c.UseLine() + "**: " + c.Short + "\n"
		}
	}
	header := &doc.GenManHeader{
		Section: "8", Source: "ctguard " + agent.Version, Manual: "System administration",
	}
	return doc.GenManTree(root, header, dir)
}
