package agent

import (
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"
)

// What is written by hand, or under a clock that was wrong, binds nobody for ever and breaks no rule.
func TestRestoreBounds(t *testing.T) {
	c := parse(t, "")
	c.StateDir = t.TempDir()
	a := newAgent(newKernel(t), c, false)
	const text = `{"override": {"kind": "pin", "level": 1, "until": "2199-01-01T00:00:00Z", "reason": "x"}, "manual": [
		{"prefix": "", "until": "2199-01-01T00:00:00Z", "reason": "x"},
		{"prefix": "192.0.2.0/24", "until": "2199-01-01T00:00:00Z", "reason": "x"}]}`
	if err := os.WriteFile(a.memoryPath(), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	a.restore()
	latest := time.Now().Add(maxOverride)
	if ov := a.machine.Override(); ov == nil || ov.Until.After(latest) {
		t.Errorf("override %+v, want one until %s at most", ov, latest)
	}
	words := a.machine.Manual()
	if len(words) != 1 || words[0].Prefix != netip.MustParsePrefix("192.0.2.0/24") || words[0].Until.After(latest) {
		t.Errorf("words %+v, want the one with a prefix, until %s at most", words, latest)
	}
	if text := a.troubles["operator's words"]; !strings.Contains(text, "without a prefix") {
		t.Errorf("told %q of the one that has none", text)
	}
}
