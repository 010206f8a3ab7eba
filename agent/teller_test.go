package agent

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"ctguard/policy"
)

// Each event is a log line with its numbers; a level event has from and to.
func TestEventsAreLogged(t *testing.T) {
	var out bytes.Buffer
	l := newAgent(newKernel(t), parse(t, ""), true).loop
	l.log = slog.New(slog.NewJSONHandler(&out, nil))
	from, to, seconds := 0, 2, 3.14
	l.emit(policy.Event{Kind: policy.LevelEvent, Reason: "pressure", From: &from, To: &to, Fill: 71.26, Pressure: 80,
		Rate: 1000, SecondsToFull: &seconds})
	l.emit(policy.Event{Kind: policy.LimitEvent, Step: policy.Evict, Prefix: netip.MustParsePrefix("203.0.113.7/32"),
		Entries: 900})
	l.decision = policy.Decision{Fill: 50, Pressure: 60, Rate: 70, SecondsToFull: &seconds}
	l.trouble("rules", os.ErrPermission)
	want := []map[string]any{
		{"level": "INFO", "msg": "level: pressure", "event": "level", "reason": "pressure", "from": 0.0, "to": 2.0,
			"fill_percent":     71.3,
			"pressure_percent": 80.0, "rate_per_second": 1000.0, "seconds_to_full": 3.1, "dry_run": true},
		{"level": "INFO", "msg": "limit: ", "event": "limit", "reason": "", "step": "evict", "prefix": "203.0.113.7/32",
			"entries":      900.0,
			"fill_percent": 0.0, "pressure_percent": 0.0, "rate_per_second": 0.0, "dry_run": true},
		{"level": "WARN", "msg": "degraded: rules: permission denied", "event": "degraded",
			"reason":       "rules: permission denied",
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
	l := newAgent(k, c, false).loop
	l.tick()
	for _, step := range []struct{ text, want string }{
		{"[steps.evict]\nleave = 95",
			"not reloaded, nothing changed: " + path + ":2: steps.evict.leave: 95 is not above 0"},
		{"[table]\ncapacity = 5\ncolour = 1",
			"not reloaded, nothing changed: " + path + ":3: table.colour: unknown key"},
		{"state_dir = \"/elsewhere\"",
			"not reloaded, nothing changed: " +
				"socket, group, state_dir, metrics and notify change only with a restart"},
	} {
		write(step.text)
		if l.reload() {
			t.Errorf("%q was taken", step.text)
		}
		l.tick()
		reasons := l.reasons(policy.ConfigEvent)
		if last := reasons[len(reasons)-1]; !strings.HasPrefix(last, step.want) {
			t.Errorf("%q: told %q, want %q", step.text, last, step.want)
		}
		if diff := cmp.Diff(c, l.config, comparePrefixes); diff != "" {
			t.Errorf("%q changed (-before +after):\n%s", step.text, diff)
		}
		if s := l.board.Status(); s.Capacity != 1000 || s.Level != 0 {
			t.Errorf("%q: capacity %d, level %d", step.text, s.Capacity, s.Level)
		}
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if l.reload() || l.told(policy.ConfigEvent, "not reloaded, nothing changed: "+path+": cannot be read") != 1 {
		t.Errorf("a file that went away was taken for an empty one: %v", l.reasons(policy.ConfigEvent))
	}
	write("[table]\ncapacity = 510")
	if !l.reload() || l.config.Capacity != 510 {
		t.Errorf("a good file was not taken: %v", l.reasons(policy.ConfigEvent))
	}
	l.tick()
	if s := l.board.Status(); s.Capacity != 510 || s.Level != top {
		t.Errorf("reloaded: capacity %d, level %d", s.Capacity, s.Level)
	}
}
