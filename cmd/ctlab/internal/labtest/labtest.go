// Package labtest is what the lab's tests share.
package labtest

import (
	"os"
	"os/exec"
	"testing"
)

// Privileged skips a test where it cannot run on the real kernel, with the reason;
// where CTGUARD_REQUIRE_PRIVILEGED=1, as in continuous integration, that is fatal.
func Privileged(t testing.TB, programs ...string) {
	t.Helper()
	give := t.Skipf
	if os.Getenv("CTGUARD_REQUIRE_PRIVILEGED") == "1" {
		give = t.Fatalf
	}
	if os.Geteuid() != 0 {
		give("needs root: it makes network namespaces")
	}
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			give("needs %s: %v", p, err)
		}
	}
}
