package sysctl

import (
	"encoding/json"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// written saves a journal and returns its text.
func written(f *fixture, settings map[string]Entry) (path string, text []byte) {
	f.Helper()
	j, err := here(f.proc)
	if err != nil {
		f.Fatal(err)
	}
	j.Settings = settings
	if err := j.save(f.dir); err != nil {
		f.Fatal(err)
	}
	path = filepath.Join(f.dir, journalName)
	text, err = os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	return path, text
}

// No flipped bit makes a value that is written back in silence.
func TestFlippedBits(t *testing.T) {
	f := newFixture(t)
	want := map[string]Entry{
		udp:         {First: 30, Before: 30, Written: 10},
		established: {First: 432000, Before: 432000, Written: 7440},
	}
	path, text := written(f, want)
	undetected := 0
	for i := range text {
		for bit := range 8 {
			flipped := append([]byte(nil), text...)
			flipped[i] ^= 1 << bit
			if err := os.WriteFile(path, flipped, 0o600); err != nil {
				t.Fatal(err)
			}
			j, err := load(f.dir, f.proc)
			if err == nil && len(j.Settings) > 0 && !maps.Equal(j.Settings, want) {
				t.Errorf("bit %d of byte %d (%q): %v", bit, i, flipped[max(0, i-10):min(len(flipped), i+10)], j.Settings)
			}
			if err == nil {
				undetected++
			}
		}
	}
	if undetected == 8*len(text) {
		t.Error("nothing was ever detected")
	}
}

// A journal of a newer version is refused and stays as it is; one that names files elsewhere is damaged.
func TestRefusedJournals(t *testing.T) {
	for name, c := range map[string]struct {
		change  func(*Journal)
		damaged bool
		says    string
	}{
		"newer": {func(j *Journal) { j.Version = journalVersion + 1 }, false, "version 2"},
		"a path": {func(j *Journal) {
			j.Settings = map[string]Entry{"../../../../tmp/x": {First: 1, Before: 1, Written: 2}}
		}, true, "../../../../tmp/x"},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			j, err := here(f.proc)
			if err != nil {
				t.Fatal(err)
			}
			j.Settings = map[string]Entry{udp: {First: 30, Before: 30, Written: 10}}
			c.change(&j)
			j.Sum = j.sum()
			text, err := json.Marshal(j)
			if err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(f.dir, journalName)
			if err := os.WriteFile(path, text, 0o600); err != nil {
				t.Fatal(err)
			}
			_, err = NewKeeper(f.proc, f.dir)
			if err == nil || !strings.Contains(err.Error(), c.says) || errors.Is(err, ErrDamaged) != c.damaged {
				t.Errorf("error %v; want %q, damaged %t", err, c.says, c.damaged)
			}
			if again, err := os.ReadFile(path); err != nil || string(again) != string(text) {
				t.Error("the journal was changed")
			}
		})
	}
}

// The journal of a ctguard that knew no sums is still understood.
func TestOldJournal(t *testing.T) {
	f := newFixture(t)
	j, err := here(f.proc)
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(map[string]any{"boot": j.Boot, "namespace": j.Namespace,
		"settings": map[string]Entry{udp: {First: 30, Before: 30, Written: 10}}})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(f.dir, journalName), text, 0o600); err != nil {
		t.Fatal(err)
	}
	f.set(udp, 10)
	f.apply(f.keeper(), nil, "udp_timeout 10 -> 30")
	f.want(map[string]int{udp: 30})
}

// What a kill in the middle of a write leaves does not stay, and several damaged journals are all set aside.
func TestTornJournals(t *testing.T) {
	f := newFixture(t)
	own, err := here(f.proc)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{journalName + ".123456", ownName(own) + ".9"} {
		if err := os.WriteFile(filepath.Join(f.dir, name), []byte("{"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{journalName, ownName(own)} {
		if err := os.WriteFile(filepath.Join(f.dir, name), []byte("{"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := NewKeeper(f.proc, f.dir); !errors.Is(err, ErrDamaged) {
		t.Fatalf("error %v, want a damaged journal", err)
	}
	if aside, err := SetAside(f.dir); err != nil || strings.Count(aside, ".damaged") != 2 {
		t.Fatalf("set aside %q (%v), want both", aside, err)
	}
	f.keeper()
	if left, _ := filepath.Glob(filepath.Join(f.dir, "*.[0-9]*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}
