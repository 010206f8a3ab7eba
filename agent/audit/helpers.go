package audit

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// judgeHelpers is about helpers: what they follow must stay tracked.
func judgeHelpers(f *Facts) (all []Finding) {
	if f.Settings["nf_conntrack_helper"] != 0 {
		off := []Setting{{"nf_conntrack_helper", 0, "helpers are for those whom a rule gives one"}}
		all = append(all, Finding{ID: HelperAuto, Severity: Warning, Sure: Certain,
			Title: "helpers are given to whatever uses their ports", Evidence: "nf_conntrack_helper is 1",
			Why: "anybody who can send to such a port can have the firewall opened; kernels since 6.0 no longer do it",
			Do:  append(set(off), "# and give helpers by rule: ct helper set"), Settings: off})
	}
	switch {
	case f.Table.Helped > 0:
		ports := slices.SortedFunc(maps.Keys(f.Table.Helps), func(a, b Port) int {
			return cmp.Or(cmp.Compare(f.Table.Helps[b], f.Table.Helps[a]), cmp.Compare(a.Port, b.Port))
		})
		var words []string
		for _, p := range ports[:min(5, len(ports))] {
			words = append(words, fmt.Sprintf("%s/%d (%d)", protocol(p.Protocol), p.Port, f.Table.Helps[p]))
		}
		evidence := "to " + strings.Join(words, ", ")
		if len(f.Rules.Helpers) > 0 {
			evidence += "; given by " + strings.Join(f.Rules.Helpers, ", ")
		}
		all = append(all, Finding{ID: HelperUsed, Severity: Info, Sure: Certain, Evidence: evidence,
			Title: fmt.Sprintf("a helper follows %d connections", f.Table.Helped),
			Why:   "they announce other connections, which only tracking lets through: never leave these ports untracked"})
	case len(f.Helpers) > 0:
		all = append(all, Finding{ID: HelperLoaded, Severity: Info, Title: "helpers are loaded and follow nothing",
			Sure:     Certain,
			Evidence: strings.Join(f.Helpers, ", "),
			Why:      "while one is loaded, its ports should stay tracked; it costs nothing else",
			Do:       []string{"modprobe -r " + strings.Join(f.Helpers, " ") + "  # if nobody needs them"}})
	}
	return all
}

// protocol names an IP protocol number.
func protocol(number uint8) string {
	if name := map[uint8]string{1: "icmp", 6: "tcp", 17: "udp", 33: "dccp", 132: "sctp"}[number]; name != "" {
		return name
	}
	return fmt.Sprint(number)
}
