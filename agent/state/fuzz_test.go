package state

import (
	"os"
	"testing"
	"time"

	"ctguard/policy"
)

// Whatever is in the files of an earlier run, it is refused or understood, operators' words have an end, and a
// machine can decide with them.
func FuzzFiles(f *testing.F) {
	for _, seed := range []string{"", "{", "null", "[]",
		`{"override":{"kind":"pin","level":99,"until":"2099-01-01T00:00:00Z"}}`,
		`{"words":[{"prefix":"10.0.0.0/8","until":"2099-01-01T00:00:00Z"},{}]}`,
		`{"version":1,"day":{"updated":"2026-01-01T00:00:00Z"}}`, `[{"protocol":"tcp","port":80}]`, `["tcp/80"]`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		d := At(t.TempDir())
		now := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
		for _, path := range []string{d.words(), d.day(), d.untracked(), d.kernel()} {
			if err := os.WriteFile(path, text, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		_, _ = d.Kernel("/proc", new(map[string]bool))
		words, _ := d.Words(now)
		m := policy.New(policy.Defaults(policy.Server))
		if ov := words.Override; ov != nil {
			if ov.Until.After(now.Add(MaxOverride)) {
				t.Errorf("an override until %s", ov.Until)
			}
			m.SetOverride(ov)
		}
		for _, word := range words.Words {
			if !word.Prefix.IsValid() || word.Until.After(now.Add(MaxOverride)) {
				t.Errorf("a word on %s until %s", word.Prefix, word.Until)
			}
			m.Say(word)
		}
		if day, err := d.Day(now); err == nil {
			m.Recall(day)
		}
		for i := range 3 {
			m.Tick(policy.Observation{Time: now.Add(time.Duration(i) * time.Second), Count: 900, Capacity: 1000})
		}
		_, _, _ = d.Untracked()
	})
}
