package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode"

	"charm.land/lipgloss/v2"
	"github.com/charmbracelet/x/ansi"

	"ctguard/agent/control"
	"ctguard/policy"
)

// The colours are the terminal's own sixteen, so that they fit light and dark alike; bubbletea leaves them out with
// NO_COLOR. Nothing is said by a colour alone.
var (
	bold   = style(lipgloss.NewStyle().Bold(true))
	dim    = style(lipgloss.NewStyle().Faint(true))
	red    = style(lipgloss.NewStyle().Foreground(lipgloss.Red))
	yellow = style(lipgloss.NewStyle().Foreground(lipgloss.Yellow))
	green  = style(lipgloss.NewStyle().Foreground(lipgloss.Green))
)

func style(s lipgloss.Style) func(string) string {
	return func(text string) string { return s.Render(text) }
}

// shade colours what is drawn at a height of the chart, in percent, by the marks.
func (m *topView) shade(text string, at float64) string {
	paint := green
	if steps := m.status.Steps; len(steps) > 0 && at > steps[0].Enter {
		if paint = yellow; at > 90 {
			paint = red
		}
	}
	return paint(text)
}

// plain replaces what a terminal would take for more than a character: names of rules come from elsewhere.
func plain(text string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, text)
}

// screen draws everything, no line wider and not more of them than the terminal has. What matters most is drawn
// first and gets its room first.
func (m *topView) screen() string {
	head := m.head()
	steps := m.steps()
	room := m.height - len(head) - 1 // the last line is the keys'
	chart := []string{}
	if rows := min(12, room/3); rows >= 3 {
		chart = m.chart(m.width, rows)
	}
	room -= len(chart)
	steps = steps[:max(0, min(len(steps), room))]
	room -= len(steps)
	events := m.events(min(4, room/3))
	room -= len(events)
	lines := slices.Concat(head, chart, steps, m.holders(room), events)
	for len(lines) < m.height-1 {
		lines = append(lines, "")
	}
	lines = append(lines[:max(0, min(len(lines), m.height-1))], m.foot())
	for i := range lines {
		lines[i] = ansi.Truncate(lines[i], m.width, "")
	}
	return strings.Join(lines, "\n")
}

// head says how things stand.
func (m *topView) head() []string {
	s := m.status
	full := "not filling"
	if s.SecondsToFull != nil {
		full = yellow(fmt.Sprintf("full in %.0f s", *s.SecondsToFull))
	}
	level := fmt.Sprintf("level %d of %d%s", s.Level, len(s.Steps), named(s))
	lines := []string{
		bold(level) + fmt.Sprintf(" (%s)  %s  ", s.Mode, s.Profile) +
			dim(fmt.Sprintf("ctguard %s  %s", plain(s.Version), s.Time.Format(time.TimeOnly))),
		bold(fmt.Sprintf("fill %.1f %%", s.Fill)) +
			fmt.Sprintf(" (%d of %d)  pressure %.0f %%  %+.0f/s, ", s.Count, s.Capacity, s.Pressure, s.Rate) + full +
			fmt.Sprintf("  kernel drops %d", s.KernelDrops),
	}
	if m.lost != nil {
		lines = append(lines, red(plain(m.lost.Error()+": this is how it was at "+s.Time.Format(time.TimeOnly))))
	}
	if s.Override != nil {
		lines = append(lines, yellow(plain(s.Override.String()+", until "+s.Override.Until.Format(time.TimeOnly))))
	}
	for _, text := range s.Degraded {
		lines = append(lines, yellow(plain("degraded: "+text)))
	}
	if why := lastLevel(s.Events); why != "" && s.Level > 0 {
		lines = append(lines, "why: "+plain(why))
	}
	return lines
}

// lastLevel is the reason of the newest change of the level.
func lastLevel(events []control.NumberedEvent) string {
	for _, e := range slices.Backward(events) {
		if e.Kind == policy.LevelEvent {
			return e.Reason
		}
	}
	return ""
}

// steps lists the ladder.
func (m *topView) steps() []string {
	lines := []string{dim(fmt.Sprintf("%-13s %-13s %-7s %9s  %s", "STEP", "STATE", "IN/OUT", "WORK", "WHY"))}
	for _, s := range m.status.Steps {
		state, why, paint := "off", s.Reason, func(text string) string { return text }
		if s.Engaged {
			state, paint = "engaged "+short(m.status.Time.Sub(*s.Since)), yellow
		}
		if s.Skipped != "" {
			state, why, paint = "skipped", s.Skipped, dim
		}
		lines = append(lines, paint(fmt.Sprintf("%-13s %-13s %-7s %9d  ", s.Name, state,
			fmt.Sprintf("%g/%g", s.Enter, s.Leave), s.Work)+plain(why)))
	}
	return lines
}

// barWidth is the width of a source's bar.
const barWidth = 24

// holders lists the heaviest sources with bars, and where each usually ends, in so many lines.
func (m *topView) holders(room int) []string {
	h := m.status.Holders
	if room < 3 || h == nil {
		return nil
	}
	lines := []string{
		dim("states ") + shares(h.States) + dim("  protocols ") + shares(h.Protocols),
		dim(fmt.Sprintf("  %-*s %8s %8s  of %d sources%s", m.sourceWidth(), "SOURCE", "ENTRIES", "USUAL", h.Distinct,
			sampled(h))),
	}
	sources := m.sources()
	from := max(0, m.chosen-(room-3)) // the one that is chosen is in sight
	for i := from; i < len(sources) && len(lines) < room; i++ {
		lines = append(lines, m.holder(i, sources[i], max(1, sources[0].Entries)))
	}
	return lines
}

func sampled(h *control.HoldersStatus) string {
	if h.Sampled {
		return ", from a sample"
	}
	return ""
}

// sourceWidth is the width of the longest source.
func (m *topView) sourceWidth() int {
	width := len("SOURCE")
	for _, s := range m.sources() {
		width = max(width, len(s.Source().Short()))
	}
	return width
}

// holder draws one source: its bar, and in it or behind it where its usual holding ends.
func (m *topView) holder(i int, s control.HolderStatus, most int) string {
	length := func(entries int) int { return min(barWidth, (entries*barWidth+most-1)/most) }
	bar := []string{}
	for j := range barWidth {
		cell := " "
		if j < length(s.Entries) {
			cell = m.glyphs.bar
		}
		if s.Usual > 0 && j == min(barWidth, max(1, length(s.Usual)))-1 {
			cell = m.glyphs.usual
		}
		bar = append(bar, cell)
	}
	pointer, usual := "  ", fmt.Sprint(s.Usual)
	if i == m.chosen {
		pointer = "> "
	}
	if s.Usual == 0 {
		usual = "new"
	}
	line := fmt.Sprintf("%s%-*s %8d %8s  %s", pointer, m.sourceWidth(), s.Source().Short(), s.Entries, usual,
		strings.Join(bar, ""))
	for _, l := range m.status.Limited {
		if l.Source() == s.Source() {
			return line + yellow(" "+l.Kind+" until "+l.Until.Format(time.TimeOnly))
		}
	}
	return line
}

// shares lists counts, the largest first.
func shares(counts map[string]int) string {
	names := slices.SortedFunc(maps.Keys(counts), func(a, b string) int {
		if counts[a] != counts[b] {
			return counts[b] - counts[a]
		}
		return strings.Compare(a, b)
	})
	for i, name := range names {
		names[i] = fmt.Sprintf("%s %d", name, counts[name])
	}
	return strings.Join(names, ", ")
}

// events lists the newest events, in so many lines.
func (m *topView) events(room int) []string {
	list := m.status.Events
	var lines []string
	for _, e := range list[max(0, len(list)-max(0, room)):] {
		var text strings.Builder
		printEvent(&text, e)
		lines = append(lines, dim(plain(strings.TrimSuffix(text.String(), "\n"))))
	}
	return lines
}

// foot is the keys, what is asked, or what came of it.
func (m *topView) foot() string {
	switch {
	case m.question != nil:
		return bold(m.question.text + "? y/n")
	case m.said != "":
		return bold(plain(m.said))
	}
	return dim("q quit  up/down choose  l limit  r release  + - p pin level  a auto  [ ] time")
}
