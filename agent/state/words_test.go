package state

import (
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"
)

// What is written by hand, or under a clock that was wrong, binds nobody for ever and breaks no rule.
func TestWordsAreBounded(t *testing.T) {
	d := At(t.TempDir())
	const text = `{"override": {"kind": "pin", "level": 1, "until": "2199-01-01T00:00:00Z", "reason": "x"}, "words": [
		{"prefix": "", "until": "2199-01-01T00:00:00Z", "reason": "x"},
		{"prefix": "192.0.2.0/24", "until": "2199-01-01T00:00:00Z", "reason": "x"}]}`
	if err := os.WriteFile(d.words(), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	words, err := d.Words(now)
	latest := now.Add(MaxOverride)
	if ov := words.Override; ov == nil || ov.Until.After(latest) {
		t.Errorf("override %+v, want one until %s at most", ov, latest)
	}
	if list := words.Words; len(list) != 1 || list[0].Prefix != netip.MustParsePrefix("192.0.2.0/24") ||
		list[0].Until.After(latest) {
		t.Errorf("words %+v, want the one with a prefix, until %s at most", list, latest)
	}
	if err == nil || !strings.Contains(err.Error(), "without a prefix") {
		t.Errorf("told %v of the one that has none", err)
	}
}

// What an operator said to an older ctguard holds after an upgrade.
func TestWordsOfVersion0(t *testing.T) {
	d, now := At(t.TempDir()), time.Now()
	text := `{"override": null, "manual": [{"prefix": "192.0.2.7/32", "release": true, "until": "` +
		now.Add(time.Hour).Format(time.RFC3339) + `", "reason": "a partner"}]}`
	if err := os.WriteFile(d.words(), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	words, err := d.Words(now)
	if err != nil || len(words.Words) != 1 || !words.Words[0].Release {
		t.Fatalf("words %+v (%v), want the release", words, err)
	}
	if err := d.Remember(words); err != nil {
		t.Fatal(err)
	}
	if again, err := d.Words(now); err != nil || len(again.Words) != 1 {
		t.Errorf("written down and read again: %+v (%v)", again, err)
	}
}
