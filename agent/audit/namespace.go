package audit

import "fmt"

// judgeNamespace looks for entries elsewhere when there are none here. Where traffic goes untracked, or a daemon has
// seen entries, an empty table is no sign of that.
func judgeNamespace(f *Facts) []Finding {
	seen := f.Daemon != nil && f.Daemon.Peak > 0 || len(f.Rules.Notrack) > 0
	if !f.Loaded || f.Count > 0 || f.Elsewhere == 0 || seen {
		return nil
	}
	return []Finding{{ID: WrongNamespace, Severity: Warning,
		Title:    "the table is empty here, and another namespace has entries",
		Evidence: fmt.Sprintf("count 0 here, at least %d elsewhere", f.Elsewhere), Sure: Likely,
		Why: "each network namespace has a table of its own: what is looked at here is not where the traffic is",
		Do:  []string{"lsns -t net  # shows the namespaces", "ctguard audit --netns /proc/PID/ns/net"}}}
}
