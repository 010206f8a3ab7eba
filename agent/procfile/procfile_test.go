package procfile

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

// What is read is what os.ReadFile reads, however much it is, and so are the errors.
func TestRead(t *testing.T) {
	long := filepath.Join(t.TempDir(), "long")
	if err := os.WriteFile(long, bytes.Repeat([]byte("0123456789"), 10000), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/proc/version", "/proc/cpuinfo", "/proc/sys/kernel/ostype", os.DevNull, long,
		"/proc/self/nothing", "/proc", "/proc/version/none"} {
		want, wantErr := os.ReadFile(path)
		got, err := Read(path)
		if !bytes.Equal(got, want) || (err == nil) != (wantErr == nil) ||
			errors.Is(err, fs.ErrNotExist) != errors.Is(wantErr, fs.ErrNotExist) {
			t.Errorf("%s: %d bytes, %v; want %d bytes, %v", path, len(got), err, len(want), wantErr)
		}
		if wantErr != nil && err != nil && err.Error() != wantErr.Error() {
			t.Errorf("%s: %q, want %q", path, err, wantErr)
		}
	}
}
