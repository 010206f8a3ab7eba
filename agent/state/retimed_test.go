package state

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// The note has the shortest of what entries were given, for as long as one of them may be there.
func TestRetimed(t *testing.T) {
	d, now := At(t.TempDir()), time.Date(2026, 11, 30, 3, 0, 0, 0, time.UTC)
	want := func(at time.Duration, want map[string]int) {
		t.Helper()
		got, err := d.Retimed(now.Add(at))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("after %s (-want +got):\n%s", at, diff)
		}
	}
	note := func(at time.Duration, given map[string]int) {
		t.Helper()
		if err := d.NoteRetimed(given, now.Add(at)); err != nil {
			t.Fatal(err)
		}
	}
	want(0, map[string]int{})
	note(0, map[string]int{"a": 100, "b": 10})
	want(9*time.Second, map[string]int{"a": 100, "b": 10})
	want(10*time.Second, map[string]int{"a": 100})
	note(50*time.Second, map[string]int{"a": 30})
	want(99*time.Second, map[string]int{"a": 30}) // the first are there still
	want(100*time.Second, map[string]int{})
	note(200*time.Second, map[string]int{"a": 500})
	want(201*time.Second, map[string]int{"a": 500})

	if err := (*Dir)(nil).NoteRetimed(map[string]int{"a": 1}, now); err != nil {
		t.Errorf("a dry run: %v", err)
	}
	if err := os.WriteFile(filepath.Join(d.path, "retimed.json"), []byte("nonsense"), 0o600); err != nil {
		t.Fatal(err)
	}
	d = At(d.path) // as the next process finds it
	if _, err := d.Retimed(now); err == nil {
		t.Error("nonsense was read")
	}
	note(0, map[string]int{"a": 7})
	want(0, map[string]int{"a": 7})
}
