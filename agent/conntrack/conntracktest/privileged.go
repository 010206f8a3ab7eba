package conntracktest

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"ctguard/agent/conntrack/conntrackfill"
)

// Privileged skips a test that can't run on the real kernel here, for want of root or of a program, with the
// reason. Where CTGUARD_REQUIRE_PRIVILEGED=1, as in continuous integration, that is fatal.
func Privileged(tb testing.TB, programs ...string) {
	tb.Helper()
	give := tb.Skipf
	if os.Getenv("CTGUARD_REQUIRE_PRIVILEGED") == "1" {
		give = tb.Fatalf
	}
	if os.Geteuid() != 0 {
		give("needs root: it makes network namespaces")
	}
	for _, program := range programs {
		if _, err := exec.LookPath(program); err != nil {
			give("needs %s: %v", program, err)
		}
	}
}

// Own gives a test a network namespace of its own; see [conntrackfill.Enter].
func Own(tb testing.TB, programs ...string) {
	tb.Helper()
	Privileged(tb, programs...)
	if err := conntrackfill.Enter(); err != nil {
		tb.Fatal(err)
	}
}

// Shared makes a directory that every user may walk; those of testing.T.TempDir are the owner's.
func Shared(tb testing.TB) string {
	tb.Helper()
	dir, err := os.MkdirTemp("", "ctguard")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		tb.Fatal(err)
	}
	return dir
}

// Reachable copies the test program to where every user may run it.
func Reachable(tb testing.TB) string {
	tb.Helper()
	self, err := os.Executable()
	if err != nil {
		tb.Fatal(err)
	}
	text, err := os.ReadFile(self)
	if err != nil {
		tb.Fatal(err)
	}
	path := filepath.Join(Shared(tb), "stranger")
	if err := os.WriteFile(path, text, 0o755); err != nil {
		tb.Fatal(err)
	}
	return path
}
