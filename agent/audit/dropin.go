package audit

import (
	"fmt"
	"io"
	"slices"
	"strings"
)

// WriteDropIn writes the settings that findings advise as a file for /etc/sysctl.d, each with the reason, and as
// comments what else they need.
func WriteDropIn(w io.Writer, f *Facts, all []Finding) {
	fmt.Fprintln(w, "# /etc/sysctl.d/90-conntrack.conf, as advised by ctguard audit. Apply with: sysctl --system")
	settings := advised(all)
	if len(settings) == 0 {
		fmt.Fprintln(w, "# Nothing to change: the settings of this host are as they should be.")
		return
	}
	fmt.Fprintln(w, "#\n# These names exist only once the module is loaded: have it loaded before they are applied.\n"+
		"#   echo nf_conntrack > /etc/modules-load.d/conntrack.conf")
	for _, s := range settings {
		if s.Name == "nf_conntrack_buckets" {
			fmt.Fprintf(w, "# Kernels before 4.9 take the buckets from the module alone:\n"+
				"#   echo options nf_conntrack hashsize=%d > /etc/modprobe.d/conntrack.conf\n", s.Value)
		}
	}
	if f.Shared {
		fmt.Fprintln(w, "# This is not the initial network namespace: limit and buckets must be set there.")
	}
	for _, s := range settings {
		fmt.Fprintf(w, "\n# %s (now %d)\nnet.netfilter.%s = %d\n", strings.ReplaceAll(s.Why, "\n", " "), f.Settings[s.Name],
			s.Name, s.Value)
	}
}

// advised collects the settings of all findings by name. Where two findings are about one setting, the worse
// comes first and counts.
func advised(all []Finding) (settings []Setting) {
	for _, found := range all {
		for _, s := range found.Settings {
			if !slices.ContainsFunc(settings, func(have Setting) bool { return have.Name == s.Name }) {
				settings = append(settings, s)
			}
		}
	}
	slices.SortFunc(settings, func(a, b Setting) int { return strings.Compare(a.Name, b.Name) })
	return settings
}
