package policy

import (
	"fmt"
	"net/netip"
	"slices"
)

// Explain says in a few lines why the source of prefix is, or is not, limited.
func (m *Machine) Explain(prefix netip.Prefix) []string {
	var lines []string
	say := func(format string, args ...any) { lines = append(lines, fmt.Sprintf(format, args...)) }
	for _, w := range m.operator.words {
		if w.Prefix.Overlaps(prefix) {
			word := "limited"
			if w.Release {
				word = "left alone"
			}
			say("the operator wants %s %s until %s: %s", w.Prefix, word, w.Until.Format("2006-01-02 15:04:05"), w.Reason)
		}
	}
	if i := slices.IndexFunc(m.last.Allow, prefix.Overlaps); i >= 0 {
		say("on the allowlist, as %s: never limited, evicted or refused", m.last.Allow[i])
	}
	spared := slices.ContainsFunc(m.decision.Posture.Allow, func(p netip.Prefix) bool {
		return p.Bits() <= prefix.Bits() && p.Contains(prefix.Addr())
	})
	if spared {
		say("left alone: whatever limit, budget or eviction there is spares it")
	}
	found := false
	for _, l := range m.decision.Posture.Limits {
		if l.Prefix.Overlaps(prefix) && !spared {
			found = true
			say("limited as %s (%s) until %s: %s", l.Prefix, l.Kind, l.Until.Format("15:04:05"), l.Reason)
		}
	}
	if u := m.ordinary.Usual(prefix); u != (Usual{}) {
		say("on an ordinary day it has about %.0f lasting entries and %.0f that pass", u.Assured, u.Transient)
	} else if m.ordinary.Known() {
		say("it was not here on an ordinary day, or held next to nothing")
	}
	for _, w := range m.steps {
		if e, ok := w.step.(explainer); ok {
			s := m.tell(w, m.last)
			s.cfg, s.Census = &m.cfg, m.census
			e.explain(prefix, s, say)
		}
	}
	if !found && !spared {
		say("not limited")
	}
	return lines
}
