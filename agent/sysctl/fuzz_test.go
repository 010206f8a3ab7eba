package sysctl

import (
	"encoding/json"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"testing"
)

// tree reads every file below a directory.
func tree(t *testing.T, dir string) map[string]string {
	t.Helper()
	files := make(map[string]string)
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text, err := os.ReadFile(path)
		files[path] = string(text)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// Whatever is in the journal, no file is written but settings that there are, and a journal that is refused changes
// nothing. One with a right sum, as a fault in ctguard itself might write, is no exception.
func FuzzJournal(f *testing.F) {
	good := Journal{Version: journalVersion, Boot: "first boot", Namespace: 1, Settings: map[string]Entry{
		udp: {First: 30, Before: 30, Written: 10}}}
	good.Sum = good.sum()
	text, _ := json.Marshal(good)
	for _, seed := range []string{string(text), "", "{", `{"version":2}`, `{"boot":"first boot","settings":null}`,
		`{"boot":"first boot","settings":{"../../../x":{"first":1}}}`,
		`{"boot":"first boot","namespace":18446744073709551615,` +
			`"settings":{"nf_conntrack_max":{"first":-1,"written":65536}}}`} {
		f.Add([]byte(seed), true)
		f.Add([]byte(seed), false)
	}
	f.Fuzz(func(t *testing.T, text []byte, own bool) {
		x := newFixture(t)
		var j Journal
		if own && json.Unmarshal(text, &j) == nil { // of this namespace, with a right sum
			here, err := here(x.proc)
			if err != nil {
				t.Fatal(err)
			}
			j.Boot, j.Namespace, j.Version = here.Boot, here.Namespace, journalVersion
			j.Sum = j.sum()
			if text, err = json.Marshal(j); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.WriteFile(filepath.Join(x.dir, journalName), text, 0o600); err != nil {
			t.Fatal(err)
		}
		before := tree(t, x.proc)
		k, err := NewKeeper(x.proc, x.dir)
		if err == nil {
			_, _ = k.Admin()
			_, _ = k.Revert()
		}
		after := tree(t, x.proc)
		if err != nil && !maps.Equal(before, after) {
			t.Errorf("refused (%v), and yet changed", err)
		}
		for path := range after {
			if _, was := before[path]; !was {
				t.Errorf("made %s", path)
			}
		}
	})
}
