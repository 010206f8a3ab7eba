package main

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/charmbracelet/x/ansi"

	"ctguard/agent/control"
	"ctguard/policy"
)

// Whatever the terminal's size and whatever is told, the screen fits, shows the fill, and has no character that a
// terminal would obey.
func TestScreenFits(t *testing.T) {
	since := time.Unix(900, 0)
	m := &topView{window: 1, glyphs: unicodeGlyphs, said: "said \x1b[2J", lost: errors.New("lost \x1b]0;x\a")}
	m.status = control.Status{Mode: "hold", Level: 2, Fill: 99.9, Time: time.Unix(1000, 0),
		Steps: []policy.StepStatus{{Name: "grow", Skipped: "no\x1b[31m\r\n"},
			{Name: "admit", Engaged: true, Since: &since, Enter: 95}},
		Degraded: []string{"bad\x1b[8m"}, Override: &policy.Override{Kind: policy.Pin, Reason: "why\u009b2J"},
		Events: []control.NumberedEvent{{Event: policy.Event{Kind: policy.LevelEvent, Reason: "up\x1bc"}}},
		Holders: &control.HoldersStatus{States: map[string]int{"assured": 1}, Sources: []control.HolderStatus{
			{Prefix: netip.MustParsePrefix("2001:db8:1:2::/64"), Entries: 0, Usual: 1 << 40}}},
	}
	m.points = []control.Point{{Time: time.Unix(999, 0), Seconds: 1, Fill: 250, Level: 12, Drops: 1}}
	for width := range 130 {
		for _, height := range []int{0, 1, 2, 3, 5, 8, 13, 24, 60} {
			m.width, m.height = width, height
			screen := m.screen()
			lines := strings.Split(screen, "\n")
			if len(lines) > max(1, height) {
				t.Fatalf("%d lines in %d", len(lines), height)
			}
			for _, line := range lines {
				if w := ansi.StringWidth(line); w > width {
					t.Fatalf("%d columns in %d: %q", w, width, line)
				}
			}
			if bare := ansi.Strip(screen); strings.ContainsAny(bare, "\x1b\r\a\u009b") || strings.Contains(screen, "\x1b[2J") {
				t.Fatalf("%dx%d: %q", width, height, screen)
			}
			if width > 20 && height > 5 && !strings.Contains(screen, "fill 99.9 %") {
				t.Fatalf("%dx%d:\n%s", width, height, screen)
			}
		}
	}
}

func TestShort(t *testing.T) {
	for d, want := range map[time.Duration]string{time.Minute: "1m", 12 * time.Hour: "12h", 90 * time.Second: "1m30s",
		time.Second: "1s", 10 * time.Second: "10s", 20 * time.Minute: "20m", time.Hour + time.Minute: "1h1m"} {
		if got := short(d); got != want {
			t.Errorf("%s is %s, want %s", d, got, want)
		}
	}
}

// The most of a history is its peaks, and the sum of what was refused.
func TestHighest(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	h := highestOf([]control.Point{{Time: at, Fill: 10, Level: 3, Count: 100, Drops: 1},
		{Time: at.Add(time.Minute), Fill: 93, Count: 930, Pressure: 100, Drops: 2, Seconds: 60},
		{Time: at.Add(time.Hour), Fill: 5}})
	const want = "the last 1h: fill up to 93.0 % (03:05:05), level up to 3, 3 new flows refused, the last one 58m ago"
	if got := h.String(); got != want || h.Count != 930 || h.Pressure != 100 {
		t.Errorf("%s, %+v, want %s", got, h, want)
	}
}
