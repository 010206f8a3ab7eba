package conntracktest

import (
	"os"
	"os/exec"
	"testing"
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

// Own gives a test a network namespace of its own; see [Enter].
func Own(tb testing.TB, programs ...string) {
	tb.Helper()
	Privileged(tb, programs...)
	if err := Enter(); err != nil {
		tb.Fatal(err)
	}
}
