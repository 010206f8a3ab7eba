package main

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"ctguard/agent/config"
)

// checkReport is what `ctguard check --json` prints. Field names are stable.
type checkReport struct {
	File   string   `json:"file"`
	Faults []string `json:"faults"` // with file, line and key; empty where the file is fine
}

func (p *program) checkCommand() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:     "check FILE",
		Example: "  ctguard check /etc/ctguard/ctguard.toml",
		Short:   "validate a configuration file",
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			r := checkReport{File: args[0], Faults: []string{}}
			_, err := config.Load(args[0], false)
			if err != nil {
				err = usage(err, "")
				r.Faults = strings.Split(err.Error(), "\n")
			}
			text := func(w io.Writer) {
				if len(r.Faults) == 0 {
					fmt.Fprintf(w, "%s: fine\n", r.File)
				}
			}
			return errors.Join(show(c.OutOrStdout(), asJSON, r, text), err)
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}
