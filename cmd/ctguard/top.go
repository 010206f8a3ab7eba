package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	tea "charm.land/bubbletea/v2"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"ctguard/agent/control"
	"ctguard/policy"
)

func (p *program) topCommand() *cobra.Command {
	var every time.Duration
	c := &cobra.Command{
		Use:     "top",
		Example: "  ctguard top",
		Short:   "look at the table live: fill as a chart, level and why, steps, heavy sources; with keys to steer",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if !term.IsTerminal(int(os.Stdin.Fd())) || !term.IsTerminal(int(os.Stdout.Fd())) {
				return usage(errors.New("top needs a terminal"), "ctguard status --watch, or ctguard status --json")
			}
			if every < 100*time.Millisecond || every > time.Hour {
				return usage(fmt.Errorf("--every %s is not between 100ms and 1h", every), "")
			}
			m := &topView{ctx: c.Context(), program: p, every: every, width: 80, height: 24, window: 1,
				glyphs: glyphsFor(os.Getenv)}
			first, ok := m.look()().(topNews)
			if ok && first.err != nil {
				return first.err // without a daemon there is nothing to look at
			}
			m.take(first)
			_, err := tea.NewProgram(m, tea.WithContext(c.Context()), tea.WithFPS(20)).Run()
			if c.Context().Err() == nil && !errors.Is(err, tea.ErrInterrupted) {
				return err
			}
			return nil // it was told to end
		},
	}
	c.Flags().DurationVar(&every, "every", time.Second, "how often to look")
	return c
}

// topView is the model of the live view: what the daemon said last, and what the operator is about to do.
type topView struct {
	ctx     context.Context
	program *program
	every   time.Duration

	topNews
	lost          error // why nobody answers now; the last news stay
	width, height int
	window        int // of topWindows
	chosen        int // of the sources
	question      *topChange
	said          string // what came of the last change
	glyphs        glyphs
}

// topWindows are how far back the chart may reach.
var topWindows = []time.Duration{time.Minute, 5 * time.Minute, 15 * time.Minute, time.Hour, 12 * time.Hour}

// topNews is what the daemon says.
type topNews struct {
	status control.Status
	points []control.Point
	err    error
}

// topChange is something that the operator is asked about before it is done.
type topChange struct {
	text string
	path string
	body any
}

// topDone is what came of a change.
type topDone struct {
	text string
	err  error
}

// topDue says that it is time to look again.
type topDue struct{}

// Init begins to look.
func (m *topView) Init() tea.Cmd { return m.again() }

// again looks again after a while: one look at a time, however slow the answer is.
func (m *topView) again() tea.Cmd {
	return tea.Tick(m.every, func(time.Time) tea.Msg { return topDue{} })
}

// look asks the daemon, beside the view: so it takes along what it needs of that.
func (m *topView) look() tea.Cmd {
	ctx, program, window := m.ctx, m.program, topWindows[m.window]
	return func() tea.Msg {
		var n topNews
		if n.err = program.call(ctx, "status", nil, &n.status); n.err == nil {
			n.err = program.call(ctx, "history?last="+window.String(), nil, &n.points)
		}
		return n
	}
}

// take takes news, or keeps the last ones where nobody answers.
func (m *topView) take(n topNews) {
	if m.lost = n.err; n.err == nil {
		m.topNews = n
	}
	m.chosen = max(0, min(m.chosen, len(m.sources())-1))
}

// Update takes a message.
func (m *topView) Update(msg tea.Msg) (tea.Model, tea.Cmd) {
	switch msg := msg.(type) {
	case tea.WindowSizeMsg:
		m.width, m.height = msg.Width, msg.Height
	case topDue:
		return m, m.look()
	case topNews:
		m.take(msg)
		return m, m.again()
	case topDone:
		if m.said = msg.text + ": done"; msg.err != nil {
			m.said = "not done: " + msg.err.Error()
		}
	case tea.KeyPressMsg:
		return m, m.key(msg.String())
	}
	return m, nil
}

// key does what a key is for.
func (m *topView) key(key string) tea.Cmd {
	if q := m.question; q != nil {
		m.question = nil
		if key == "y" {
			return func() tea.Msg { return topDone{q.text, m.program.call(m.ctx, q.path, q.body, nil)} }
		}
		m.said = "left as it is"
		return nil
	}
	m.said = ""
	switch key {
	case "q", "ctrl+c", "esc":
		return tea.Quit
	case "up", "k":
		m.chosen = max(0, m.chosen-1)
	case "down", "j":
		m.chosen = max(0, min(m.chosen+1, len(m.sources())-1))
	case "[", "]":
		m.window = max(0, min(m.window+map[string]int{"[": -1, "]": 1}[key], len(topWindows)-1))
	case "+", "-":
		m.pin(m.status.Level + map[string]int{"+": 1, "-": -1}[key])
	case "p":
		m.pin(m.status.Level)
	case "a":
		m.question = &topChange{"give the level back to ctguard", "auto", struct{}{}}
	case "l":
		m.word("limit", false)
	case "r":
		m.word("release", true)
	}
	return nil
}

// topSpan is how long a change from the live view holds: whoever wants it longer says so with a command.
const (
	topSpan   = "10m"
	topReason = "asked for in ctguard top"
)

// pin asks whether the level is to be pinned.
func (m *topView) pin(level int) {
	if level < 0 || level > len(m.status.Steps) {
		m.said = fmt.Sprintf("there is no level %d", level)
		return
	}
	name := ""
	if level > 0 {
		name = " (" + string(m.status.Steps[level-1].Name) + ")"
	}
	m.question = &topChange{fmt.Sprintf("pin level %d%s for %s", level, name, topSpan), "hold",
		control.HoldRequest{Kind: policy.Pin, Level: level, For: topSpan, Reason: topReason}}
}

// word asks whether the source that is chosen is to be limited or released.
func (m *topView) word(verb string, release bool) {
	sources := m.sources()
	if len(sources) == 0 {
		m.said = "no source is known yet"
		return
	}
	prefix := sources[m.chosen].Prefix
	m.question = &topChange{fmt.Sprintf("%s %s for %s", verb, control.ShortPrefix(prefix), topSpan), "prefix",
		control.PrefixRequest{Prefix: prefix.String(), Release: release, For: topSpan, Reason: topReason}}
}

// sources are the largest sources.
func (m *topView) sources() []control.HolderStatus {
	if m.status.Holders == nil {
		return nil
	}
	return m.status.Holders.Sources
}

// View draws the screen.
func (m *topView) View() tea.View {
	v := tea.NewView(m.screen())
	v.AltScreen, v.WindowTitle = true, "ctguard top"
	return v
}
