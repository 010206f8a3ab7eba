package state

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"ctguard/policy"
)

// names lists what is in a directory.
func names(t *testing.T, dir string) (list []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		list = append(list, e.Name())
	}
	return list
}

// A file is replaced as a whole, readable by its owner only, and one that can't be leaves the old one and
// nothing beside it.
func TestReplace(t *testing.T) {
	for name, replace := range map[string]func(string, []byte) error{"for a kill": Replace, "for a crash": ReplaceSynced} {
		dir := t.TempDir()
		path := filepath.Join(dir, "a.json")
		for _, want := range []string{"one", "two"} {
			if err := replace(path, []byte(want)); err != nil {
				t.Fatal(err)
			}
			if got, err := os.ReadFile(path); err != nil || string(got) != want {
				t.Errorf("%s: %q, %v; want %q", name, got, err, want)
			}
		}
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: mode %v, %v", name, info.Mode(), err)
		}
		busy := filepath.Join(dir, "b.json") // a directory can't be replaced by a file
		if err := os.Mkdir(busy, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := replace(busy, []byte("three")); err == nil {
			t.Errorf("%s: a directory was replaced", name)
		}
		if got := names(t, dir); !slices.Equal(got, []string{"a.json", "b.json"}) {
			t.Errorf("%s: left behind %v", name, got)
		}
	}
}

// What a kill left of files that were being replaced goes at the next start; everything else stays.
func TestTornFilesGo(t *testing.T) {
	dir := t.TempDir()
	kept := []string{"lock", "notes.txt.1", "operator.json", "settings-4026531840.json", "settings.json",
		"settings.json.damaged"}
	torn := []string{"operator.json.123456", "settings-4026531840.json.7", "settings.json.42", "untracked.json.new"}
	for _, name := range slices.Concat(kept, torn) {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	RemoveTorn(filepath.Join(dir, "settings.json"))
	if got, want := len(names(t, dir)), len(kept)+len(torn)-1; got != want {
		t.Errorf("left %d files beside those of settings.json, want %d", got, want)
	}
	lock, err := At(dir).Lock()
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if got := names(t, dir); !slices.Equal(got, kept) {
		t.Errorf("left %v, want %v", got, kept)
	}
}

// A state directory belongs to one agent at a time.
func TestLock(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "made", "anew")
	lock, err := At(dir).Lock()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := At(dir).Lock(); err == nil {
		t.Error("locked twice")
	}
	lock.Close()
	again, err := At(dir).Lock()
	if err != nil {
		t.Fatal(err)
	}
	again.Close()
}

// What lives untracked is known to the next process, until it is taken back.
func TestNoteUntracked(t *testing.T) {
	d := At(t.TempDir())
	web := []policy.Selector{{Protocol: policy.TCP, Port: 80}}
	read := func() ([]policy.Selector, bool) {
		list, there, err := At(d.path).Untracked()
		if err != nil {
			t.Fatal(err)
		}
		return list, there
	}
	if list, there := read(); there {
		t.Errorf("noted %v before anything was", list)
	}
	if err := d.NoteUntracked(web); err != nil {
		t.Fatal(err)
	}
	if list, there := read(); !there || !slices.Equal(list, web) {
		t.Errorf("noted %v, want %v", list, web)
	}
	for range 2 {
		if err := errors.Join(d.NoteUntracked(nil), d.ForgetUntracked()); err != nil {
			t.Fatal(err)
		}
	}
	if list, there := read(); there {
		t.Errorf("noted %v after it was taken back", list)
	}
}

// The directory of a dry run writes nothing and knows nothing.
func TestDryRunHasNoState(t *testing.T) {
	var d *Dir
	if err := errors.Join(d.Remember(Words{}), d.NoteUntracked([]policy.Selector{{Protocol: policy.TCP,
		Port: 80}})); err != nil {
		t.Error(err)
	}
	if _, there, err := d.Untracked(); there || err != nil {
		t.Errorf("noted %v, %v", there, err)
	}
}
