package nft

import (
	"bytes"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// needRoot skips where namespaces can't be made; where tests must not skip it fails.
func needRoot(t testing.TB) {
	t.Helper()
	missing := ""
	if os.Geteuid() != 0 {
		missing = "needs root to make network namespaces (try unshare -rn)"
	}
	for _, tool := range []string{"nft", "ip", "conntrack"} {
		if _, err := exec.LookPath(tool); err != nil {
			missing = "needs the program " + tool
		}
	}
	if missing == "" {
		return
	}
	if os.Getenv("CTGUARD_REQUIRE_PRIVILEGED") == "1" {
		t.Fatal(missing)
	}
	t.Skip(missing)
}

// inNewNetNS moves the test into a network namespace of its own. The thread is never unlocked, so it
// and the namespace end with the test's goroutine. Programs that the test starts are in it too.
func inNewNetNS(t testing.TB) {
	t.Helper()
	needRoot(t)
	runtime.LockOSThread()
	if err := unshare(); err != nil {
		t.Fatalf("unshare network namespace: %v", err)
	}
	run(t, "ip link set lo up")
}

func unshare() error { return unix.Unshare(unix.CLONE_NEWNET) }

// run runs a command line without shell syntax and returns what it prints.
func run(t testing.TB, line string) string {
	t.Helper()
	out, err := try(line, "")
	if err != nil {
		t.Fatalf("%s: %v\n%s", line, err, out)
	}
	return out
}

func try(line, stdin string) (string, error) {
	words := strings.Fields(line)
	cmd := exec.Command(words[0], words[1:]...)
	cmd.Stdin = strings.NewReader(stdin)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	return out.String(), err
}

// feed gives a ruleset to nft -f.
func feed(t testing.TB, ruleset string) {
	t.Helper()
	if out, err := try("nft -f -", ruleset); err != nil {
		t.Fatalf("nft -f: %v\n%s\n%s", err, out, ruleset)
	}
}
