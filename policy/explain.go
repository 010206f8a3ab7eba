package policy

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
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
	m.explainRole(prefix, say)
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
			say("limited as %s (%s) until %s: %s", l.Source(), l, l.Until.Format("15:04:05"), l.Reason)
			if len(l.Flows) > 0 {
				say("only new flows of these classes are limited: what else it opens goes on")
			}
			if len(l.Peers) > 0 {
				say("%d addresses have answered it: new flows to those go on too", len(l.Peers))
			}
		}
	}
	m.explainUsual(prefix, say)
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

// explainUsual says what a source has on an ordinary day, in each zone.
func (m *Machine) explainUsual(prefix netip.Prefix, say func(string, ...any)) {
	var list []Source
	for source := range m.ordinary.Sources {
		if source.Prefix == prefix {
			list = append(list, source)
		}
	}
	slices.SortFunc(list, Source.Compare)
	for _, source := range list {
		u := m.ordinary.Usual(source)
		say(source.named("on an ordinary day it has about %.0f lasting entries and %.0f that pass"), u.Assured, u.Transient)
	}
	if len(list) == 0 && m.ordinary.Known() {
		say("it was not here on an ordinary day, or held next to nothing")
	}
}

// explainRole says what a source was taken for.
func (m *Machine) explainRole(prefix netip.Prefix, say func(string, ...any)) {
	s := m.last
	s.cfg = &m.cfg
	switch {
	case !s.forwards():
		return
	case m.cfg.everywhere():
		say("taken for an inside host, because profile is %q", m.cfg.Profile)
	case s.inside(prefix):
		i := slices.IndexFunc(s.Inside, prefix.Overlaps)
		say("taken for an inside host: this host forwards for %s", s.Inside[i])
	default:
		say("taken for somebody outside: this host forwards for %s only", NamePrefixes(s.Inside, 3))
	}
	if m.census == nil {
		return
	}
	for _, h := range m.census.Sources {
		if h.Prefix != prefix || h.Look == nil {
			continue
		}
		text := ""
		for _, f := range h.Look.Flows[:min(3, len(h.Look.Flows))] {
			text += fmt.Sprintf("; %s: %d, of which %d are answered", f.FlowClass, f.Entries, f.Answered)
		}
		say(h.Source().named("of %d of its entries %d are forwarded%s"), h.Look.Entries, h.Look.Forwarded, text)
	}
}

// NamePrefixes names the first so many of a list, and says how many more there are.
func NamePrefixes(list []netip.Prefix, most int) string {
	var names []string
	for _, p := range list[:min(most, len(list))] {
		names = append(names, p.String())
	}
	text := strings.Join(names, ", ")
	if more := len(list) - len(names); more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	return text
}
