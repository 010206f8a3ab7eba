package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"ctguard/agent/conntrack/conntracktest"
)

const unitFile = "../../docs/examples/ctguard.service"

// systemd takes the unit without a word, and rates what it may still do.
func TestUnit(t *testing.T) {
	if os.Getenv("CTGUARD_REQUIRE_PRIVILEGED") == "1" {
		conntracktest.Privileged(t, "systemd-analyze")
	} else if _, err := exec.LookPath("systemd-analyze"); err != nil {
		t.Skip(err)
	}
	text, err := os.ReadFile(unitFile)
	if err != nil {
		t.Fatal(err)
	}
	// The program need not be installed here.
	unit := filepath.Join(t.TempDir(), "ctguard.service")
	text = bytes.ReplaceAll(text, []byte("/usr/sbin/ctguard"), []byte("/bin/true"))
	if err := os.WriteFile(unit, text, 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("systemd-analyze", "verify", unit).CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("verify: %v: %s", err, out)
	}
	out, err := exec.Command("systemd-analyze", "security", "--offline=yes", "--no-pager", unit).CombinedOutput()
	if err != nil {
		t.Fatalf("security: %v: %s", err, out)
	}
	level := regexp.MustCompile(`exposure level for ctguard.service: ([0-9.]+)`).FindSubmatch(out)
	if level == nil {
		t.Fatalf("no exposure level: %s", out)
	}
	if got, err := strconv.ParseFloat(string(level[1]), 64); err != nil || got > 2.0 {
		t.Errorf("exposure level %s, want 2.0 at most", level[1])
	}
}

// A user with the unit's capabilities guards a table up to the top level and back, with CAP_NET_ADMIN alone as soon as
// it answers. strace has each namespace that it tries something in take a tenth of a second.
func TestUserOfItsOwn(t *testing.T) {
	h := newHost(t)
	conntracktest.Privileged(t, "strace")
	user := []string{"strace", "-D", "-f", "-qq", "-o", "/dev/null", "-e", "trace=unshare",
		"-e", "inject=unshare:delay_enter=100000", "setpriv", "--reuid=1", "--regid=1", "--clear-groups", "--no-new-privs"}
	for _, set := range []string{"inh-caps", "ambient-caps", "bounding-set"} {
		user = append(user, "--"+set+"=-all,+net_admin,+sys_admin")
	}
	if set, err := os.ReadFile(unitFile); err != nil ||
		!strings.Contains(string(set), "\nAmbientCapabilities=CAP_NET_ADMIN CAP_SYS_ADMIN\n") {
		t.Fatalf("the unit has other capabilities than this test (%v)", err)
	}
	if err := os.Chown(h.state, 1, 1); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(h.dir, 1, 1); err != nil {
		t.Fatal(err)
	}
	before := h.snapshot()
	h.start(user...)
	h.onlyNetAdmin()
	h.hold(8)
	h.onlyNetAdmin()
	if s := h.status(); s.Level != 8 || len(s.Degraded) > 0 {
		t.Errorf("level %d, degraded %q", s.Level, s.Degraded)
	}
	h.stop()
	h.same(before)
}

// onlyNetAdmin fails the test where a thread of the daemon may do more.
func (h *host) onlyNetAdmin() {
	h.Helper()
	status, err := filepath.Glob("/proc/" + strconv.Itoa(h.daemon.Process.Pid) + "/task/*/status")
	if err != nil || len(status) < 2 {
		h.Fatalf("%d threads (%v)", len(status), err)
	}
	for _, path := range status {
		text, err := os.ReadFile(path)
		if err != nil {
			continue // it ended meanwhile
		}
		for _, set := range []string{"CapPrm", "CapEff"} {
			if !strings.Contains(string(text), set+":\t0000000000001000\n") {
				h.Errorf("a thread has other privileges than CAP_NET_ADMIN: %s", text)
			}
		}
	}
}
