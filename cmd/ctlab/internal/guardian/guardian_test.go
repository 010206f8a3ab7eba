package guardian

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"ctguard/cmd/ctlab/internal/role"
)

func TestMain(m *testing.M) {
	role.Hook(map[string]role.Func{Role: Run})
	os.Exit(m.Run())
}

func write(t *testing.T, path, value string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(value), 0o600); err != nil {
		t.Fatal(err)
	}
}

func want(t *testing.T, path, value string) {
	t.Helper()
	if got, err := read(path); err != nil || got != value {
		t.Errorf("%s is %q (%v), want %q", path, got, err, value)
	}
}

func TestProtectChangesAndRestores(t *testing.T) {
	dir := t.TempDir()
	setting, scratch := filepath.Join(dir, "max"), filepath.Join(dir, "scratch")
	write(t, setting, "262144\n")
	if err := os.Mkdir(scratch, 0o700); err != nil {
		t.Fatal(err)
	}
	g, err := Protect(t.Context(), scratch, map[string]string{setting: "65536"}, func() {})
	if err != nil {
		t.Fatal(err)
	}
	want(t, setting, "65536")
	if err := g.Restore(); err != nil {
		t.Fatal(err)
	}
	want(t, setting, "262144")
	if _, err := os.Stat(scratch); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the scratch directory is still there: %v", err)
	}
}

func TestRestoreLeavesNewerValues(t *testing.T) {
	setting := filepath.Join(t.TempDir(), "max")
	write(t, setting, "1000")
	g, err := Protect(t.Context(), "", map[string]string{setting: "65536"}, func() {})
	if err != nil {
		t.Fatal(err)
	}
	write(t, setting, "77") // somebody else
	if err := g.Restore(); err != nil {
		t.Fatal(err)
	}
	want(t, setting, "77")
}

func TestNothingToChange(t *testing.T) {
	setting := filepath.Join(t.TempDir(), "max")
	write(t, setting, "65536")
	g, err := Protect(t.Context(), "", map[string]string{setting: "65536"}, func() {})
	if err != nil {
		t.Fatal(err)
	}
	if err := g.Restore(); err != nil {
		t.Fatal(err)
	}
	want(t, setting, "65536")
}

func TestMissingSettingIsAnError(t *testing.T) {
	_, err := Protect(t.Context(), "", map[string]string{filepath.Join(t.TempDir(), "none"): "1"}, func() {})
	if !errors.Is(err, os.ErrNotExist) {
		t.Errorf("error is %v, want not exist", err)
	}
}

// A second lab waits for the first, and can give up waiting.
func TestOneAtATime(t *testing.T) {
	g, err := Protect(t.Context(), "", nil, func() {})
	if err != nil {
		t.Fatal(err)
	}
	waiting := make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-waiting
		cancel()
	}()
	if _, err := Protect(ctx, "", nil, func() { close(waiting) }); !errors.Is(err, context.Canceled) {
		t.Errorf("error is %v, want cancelled", err)
	}

	free := make(chan error, 1)
	go func() { free <- Idle(context.Background(), func() error { return nil }) }()
	if err := g.Restore(); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-free:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(time.Minute):
		t.Error("the lock was not given back")
	}
}

// A lab that takes over at once, with the same values, is no failure of the one before.
func TestRestoreBeforeTheNextLab(t *testing.T) {
	setting := filepath.Join(t.TempDir(), "max")
	write(t, setting, "262144")
	g, err := Protect(t.Context(), "", map[string]string{setting: "65536"}, func() {})
	if err != nil {
		t.Fatal(err)
	}
	waiting, next := make(chan struct{}), make(chan error, 1)
	var second *Guardian
	go func() {
		var err error
		second, err = Protect(t.Context(), "", map[string]string{setting: "65536"}, sync.OnceFunc(func() { close(waiting) }))
		next <- err
	}()
	<-waiting
	if err := g.Restore(); err != nil {
		t.Error(err)
	}
	if err := <-next; err != nil {
		t.Fatal(err)
	}
	want(t, setting, "65536")
	if err := second.Restore(); err != nil {
		t.Error(err)
	}
	want(t, setting, "262144")
}
