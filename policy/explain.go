package policy

import (
	"fmt"
	"net/netip"
	"slices"
)

// Explain says in a few lines why the source of prefix is, or is not, held back.
func (m *Machine) Explain(prefix netip.Prefix) []string {
	var lines []string
	say := func(format string, args ...any) { lines = append(lines, fmt.Sprintf(format, args...)) }
	for _, w := range m.manual {
		if w.Prefix.Overlaps(prefix) {
			word := "held back"
			if w.Release {
				word = "left alone"
			}
			say("the operator wants %s %s until %s: %s", w.Prefix, word, w.Until.Format("2006-01-02 15:04:05"), w.Reason)
		}
	}
	if i := slices.IndexFunc(m.last.Allow, prefix.Overlaps); i >= 0 {
		say("on the allowlist, as %s: never limited, evicted or refused", m.last.Allow[i])
	}
	found := false
	for _, l := range m.decision.Posture.Limits {
		if l.Prefix.Overlaps(prefix) {
			found = true
			say("held back as %s (%s) until %s: %s", l.Prefix, l.Kind, l.Until.Format("15:04:05"), l.Reason)
		}
	}
	for p, of := range m.offenders.known {
		if p.Overlaps(prefix) {
			say("%s has been held back %d times so far; the next time it will be for %s", p, of.strikes, of.span(m.cfg))
		}
	}
	m.explainAccounts(prefix, say)
	if !found {
		say("not held back")
	}
	return lines
}

// explainAccounts says how prefix stood when the table was last divided.
func (m *Machine) explainAccounts(prefix netip.Prefix, say func(string, ...any)) {
	if _, on := m.engaged(Evict); !on || m.offenders.last == nil {
		say("the table is not being divided now: evict is not engaged, or nobody is near a fair share")
		return
	}
	for _, a := range m.offenders.last {
		if !a.Prefix.Overlaps(prefix) {
			continue
		}
		say("%s holds about %.0f entries (fair share %.0f) and %.0f that only pass (fair share %.0f); weight %g",
			a.Prefix, a.held, a.keepHeld, a.passing, a.keepPassing, a.weight)
		if a.opens > 0 {
			say("it opened about %.0f flows a second (fair share %.0f); %.0f %% of its entries were answered", a.opens, a.keepOpens, 100*a.answered())
		}
		return
	}
	say("it was not among the %d largest sources of the last scan: far below a fair share", len(m.offenders.last))
}
