package nft

import (
	"bytes"
	"os/exec"
	"strings"
	"testing"

	"ctguard/agent/conntrack/conntracktest"
)

// inNewNetNS moves the test into a network namespace of its own. The thread is never unlocked, so it
// and the namespace end with the test's goroutine. Programs that the test starts are in it too.
func inNewNetNS(t testing.TB) {
	t.Helper()
	conntracktest.Own(t, programs...)
	run(t, "ip link set lo up")
}

// programs are what the tests use besides the kernel.
var programs = []string{"nft", "ip", "conntrack", "iptables-legacy"}

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
