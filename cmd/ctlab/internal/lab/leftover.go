package lab

import (
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"ctguard/cmd/ctlab/internal/ns"
)

// state is all that a guard could leave behind in a namespace, line by line.
type state []string

// stateDirs are the settings that are compared.
var stateDirs = []string{"/proc/sys/net/netfilter", "/proc/sys/net/ipv4", "/proc/sys/net/ipv6/conf/all"}

// volatile settings change by themselves.
var volatile = map[string]bool{
	"/proc/sys/net/netfilter/nf_conntrack_count": true,
}

func snapshot(n *ns.Namespace) (state, error) {
	var st state
	var out, errs strings.Builder
	cmd := exec.Command("nft", "list", "ruleset")
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := n.Start(cmd); err != nil {
		return nil, fmt.Errorf("start nft in %s: %w", n.Name(), err)
	}
	if err := cmd.Wait(); err != nil {
		return nil, fmt.Errorf("list ruleset in %s: %w: %s", n.Name(), err, errs.String())
	}
	for line := range strings.Lines(out.String()) {
		st = append(st, "nft: "+strings.TrimRight(line, "\n"))
	}
	err := n.Do(func() error {
		for _, dir := range stateDirs {
			if err := filepath.WalkDir(dir, st.readSetting); err != nil {
				return err
			}
		}
		return nil
	})
	return st, err
}

func (st *state) readSetting(path string, d fs.DirEntry, err error) error {
	if err != nil || d.IsDir() || volatile[path] {
		return err
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil //nolint:nilerr // write-only settings exist
	}
	*st = append(*st, strings.TrimPrefix(path, "/proc/sys/")+" = "+strings.TrimSpace(string(b)))
	return nil
}

// diff lists the lines that are in one state only, as "- line" and "+ line".
func (st state) diff(after state) []string {
	count := map[string]int{}
	for _, l := range st {
		count[l]--
	}
	for _, l := range after {
		count[l]++
	}
	out := []string{}
	for l, n := range count {
		switch {
		case n < 0:
			out = append(out, "- "+l)
		case n > 0:
			out = append(out, "+ "+l)
		}
	}
	slices.Sort(out)
	return out
}
