package agent

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"ctguard/policy"
)

// The history is bounded, numbered without gaps, and read from any point.
func TestHistory(t *testing.T) {
	var h history
	if got := h.since(0, 20); got == nil || len(got) != 0 {
		t.Errorf("an empty history is %v: not an empty list", got)
	}
	for i := range historySize + 100 {
		h.add(policy.Event{Reason: fmt.Sprint(i + 1)})
	}
	if len(h.list) != historySize {
		t.Errorf("%d events are kept, want %d", len(h.list), historySize)
	}
	for _, c := range []struct {
		after            uint64
		most             int
		first, last, len int
	}{
		{0, historySize, 101, historySize + 100, historySize},
		{0, 20, historySize + 81, historySize + 100, 20},
		{historySize + 98, 20, historySize + 99, historySize + 100, 2},
	} {
		got := h.since(c.after, c.most)
		if len(got) != c.len || got[0].Number != uint64(c.first) || got[0].Reason != fmt.Sprint(c.first) || got[len(got)-1].Number != uint64(c.last) {
			t.Errorf("after %d, at most %d: %d events from %d to %d", c.after, c.most, len(got), got[0].Number, got[len(got)-1].Number)
		}
	}
	if got := h.since(historySize+100, 20); len(got) != 0 {
		t.Errorf("after the last: %v", got)
	}
}

// Each event is a log line with its numbers; a level event has from and to.
func TestEventsAreLogged(t *testing.T) {
	var out bytes.Buffer
	a := newAgent(newKernel(t), parse(t, ""), true)
	a.log = slog.New(slog.NewJSONHandler(&out, nil))
	from, to, seconds := 0, 2, 3.14
	a.emit(policy.Event{Kind: policy.LevelEvent, Reason: "pressure", From: &from, To: &to, Fill: 71.26, Pressure: 80, Rate: 1000, SecondsToFull: &seconds})
	a.emit(policy.Event{Kind: policy.LimitEvent, Step: policy.Evict, Prefix: netip.MustParsePrefix("203.0.113.7/32"), Entries: 900})
	a.decision = policy.Decision{Fill: 50, Pressure: 60, Rate: 70, SecondsToFull: &seconds}
	a.trouble("rules", os.ErrPermission)
	want := []map[string]any{
		{"level": "INFO", "msg": "level: pressure", "event": "level", "reason": "pressure", "from": 0.0, "to": 2.0, "fill_percent": 71.3,
			"pressure_percent": 80.0, "rate_per_second": 1000.0, "seconds_to_full": 3.1, "dry_run": true},
		{"level": "INFO", "msg": "limit: ", "event": "limit", "reason": "", "step": "evict", "prefix": "203.0.113.7/32", "entries": 900.0,
			"fill_percent": 0.0, "pressure_percent": 0.0, "rate_per_second": 0.0, "dry_run": true},
		{"level": "WARN", "msg": "degraded: rules: permission denied", "event": "degraded", "reason": "rules: permission denied",
			"fill_percent": 50.0, "pressure_percent": 60.0, "rate_per_second": 70.0, "seconds_to_full": 3.1, "dry_run": true},
	}
	var got []map[string]any
	for line := range strings.Lines(out.String()) {
		var fields map[string]any
		if err := json.Unmarshal([]byte(line), &fields); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		delete(fields, "time")
		got = append(got, fields)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("log (-want +got):\n%s", diff)
	}
}

// A bad file changes nothing and says why; a good one counts from the next tick.
func TestReload(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ctguard.toml")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c := parse(t, "")
	c.Path = path
	k := newKernel(t)
	k.count = 500
	a := newAgent(k, c, false)
	a.tick()
	for _, step := range []struct{ text, want string }{
		{"[steps.evict]\nleave = 95", "not reloaded, nothing changed: " + path + ":2: steps.evict.leave: 95 is not above 0"},
		{"[table]\ncapacity = 5\ncolour = 1", "not reloaded, nothing changed: " + path + ":3: table.colour: unknown key"},
		{"state_dir = \"/elsewhere\"", "not reloaded, nothing changed: socket, group, state_dir and metrics.listen change only with a restart"},
	} {
		write(step.text)
		if a.reload() != nil {
			t.Errorf("%q was taken", step.text)
		}
		a.tick()
		reasons := a.reasons(policy.ConfigEvent)
		if last := reasons[len(reasons)-1]; !strings.HasPrefix(last, step.want) {
			t.Errorf("%q: told %q, want %q", step.text, last, step.want)
		}
		if diff := cmp.Diff(c, a.config, comparePrefixes); diff != "" {
			t.Errorf("%q changed (-before +after):\n%s", step.text, diff)
		}
		if s := a.status.Load(); s.Capacity != 1000 || s.Level != 0 {
			t.Errorf("%q: capacity %d, level %d", step.text, s.Capacity, s.Level)
		}
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if a.reload() != nil || a.told(policy.ConfigEvent, "not reloaded, nothing changed: "+path+": cannot be read") != 1 {
		t.Errorf("a file that went away was taken for an empty one: %v", a.reasons(policy.ConfigEvent))
	}
	write("[table]\ncapacity = 510")
	if s := a.reload(); s == nil || s.config.Capacity != 510 {
		t.Errorf("a good file was not taken: %v", a.reasons(policy.ConfigEvent))
	}
	a.tick()
	if s := a.status.Load(); s.Capacity != 510 || s.Level != top {
		t.Errorf("reloaded: capacity %d, level %d", s.Capacity, s.Level)
	}
}
