//go:build man

package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/cpuguy83/go-md2man/v2/md2man"
	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"

	"ctguard/agent"
)

// The build makes the manual pages with a program of its own (-tags man), so that what is installed does not carry
// what makes them.
func init() {
	builders = append(builders, func() *cobra.Command {
		return &cobra.Command{
			Use:    "man DIR EXAMPLE",
			Hidden: true,
			Args:   cobra.ExactArgs(2),
			RunE: func(c *cobra.Command, args []string) error {
				return errors.Join(writeManual(c.Root(), filepath.Join(args[0], "man8")),
					writeFileManual(args[1], filepath.Join(args[0], "man5")))
			},
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

// writeFileManual writes the manual page of the configuration into a directory: the example, which has every key.
func writeFileManual(example, dir string) error {
	text, err := os.ReadFile(example)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	var page strings.Builder
	fmt.Fprintf(&page, "%% \"CTGUARD.TOML\" \"5\" \"\" \"ctguard %s\" \"File formats\"\n\n"+
		"# NAME\n\nctguard.toml - configuration of ctguard\n\n# SYNOPSIS\n\n**/etc/ctguard/ctguard.toml**\n\n"+
		"# DESCRIPTION\n\nThis is the whole file with its defaults, in TOML.\n\n", agent.Version)
	for line := range strings.Lines(string(text)) {
		page.WriteString("    " + line)
	}
	page.WriteString("\n# SEE ALSO\n\n**ctguard-check(8)**, **ctguard-run(8)**\n")
	return os.WriteFile(filepath.Join(dir, "ctguard.toml.5"), md2man.Render([]byte(page.String())), 0o644)
}
