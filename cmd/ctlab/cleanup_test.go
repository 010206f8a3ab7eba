package main

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ctguard/agent/conntrack/conntracktest"
	"ctguard/cmd/ctlab/internal/guardian"
	"ctguard/cmd/ctlab/internal/lab"
	"ctguard/cmd/ctlab/internal/role"
)

const (
	maxFile = "/proc/sys/net/netfilter/nf_conntrack_max"
	// envMain makes the test binary be ctlab itself.
	envMain = "CTLAB_TEST_MAIN"
	// patience bounds every wait for an event.
	patience = time.Minute
)

func TestMain(m *testing.M) {
	role.Hook(lab.Roles())
	if os.Getenv(envMain) != "" {
		main()
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// ctlab is a run in the middle of its attack.
type ctlab struct {
	cmd      *exec.Cmd
	tmp      string
	children map[int]string // pid to network namespace
}

func startAttack(t *testing.T, args ...string) *ctlab {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	c := &ctlab{tmp: t.TempDir()}
	c.cmd = exec.Command(self, append([]string{"run", "--calm", "200ms", "--attack-for", "5m",
		"--capacity", otherCapacity(t)}, args...)...)
	c.cmd.Env = append(os.Environ(), envMain+"=1", "TMPDIR="+c.tmp)
	// A process group of its own, and death with the test.
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	stderr, err := c.cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.cmd.Process.Kill() })
	lines := bufio.NewScanner(stderr)
	for lines.Scan() {
		if strings.HasPrefix(lines.Text(), "attack:") {
			c.children = descendants(t, c.cmd.Process.Pid)
			return c
		}
	}
	t.Fatalf("ctlab ended before the attack: %v", c.cmd.Wait())
	return nil
}

// otherCapacity is a size of the table that this machine's does not have, so that a run is seen to change it and to
// put it back.
func otherCapacity(t *testing.T) string {
	t.Helper()
	if capacity := "65536"; idleMax(t) != capacity {
		return capacity
	}
	return "49152"
}

// descendants are the direct children of a process with their namespaces.
func descendants(t *testing.T, parent int) map[int]string {
	t.Helper()
	out := map[int]string{}
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range dirs {
		stat, err := os.ReadFile(filepath.Join(d, "stat"))
		if err != nil {
			continue // gone meanwhile
		}
		f := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		if f[1] != strconv.Itoa(parent) {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(d))
		if err != nil {
			t.Fatal(err)
		}
		space, err := os.Readlink(filepath.Join(d, "ns/net"))
		if err != nil {
			continue
		}
		out[pid] = space
	}
	return out
}

// awaitEnd waits until a process is gone.
func awaitEnd(t *testing.T, fd, pid int) {
	t.Helper()
	p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(p, int(patience.Milliseconds()))
		if err == unix.EINTR {
			continue
		}
		if err != nil || n == 0 {
			t.Fatalf("process %d is still there (%v)", pid, err)
		}
		return
	}
}

func readMax(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile(maxFile)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

// idleMax reads the limit while no lab runs: tests of other packages lower it too.
func idleMax(t *testing.T) (value string) {
	t.Helper()
	err := guardian.Idle(t.Context(), func() error {
		value = readMax(t)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return value
}

// Whatever ends a run, nothing of it stays: no process, no namespace, no file, no setting.
func TestNothingStays(t *testing.T) {
	for name, end := range map[string]func(*ctlab) error{
		"SIGKILL": func(c *ctlab) error { return c.cmd.Process.Signal(syscall.SIGKILL) },
		"SIGTERM": func(c *ctlab) error { return c.cmd.Process.Signal(syscall.SIGTERM) },
		// As a terminal does it: the whole group at once.
		"SIGINT": func(c *ctlab) error { return syscall.Kill(-c.cmd.Process.Pid, syscall.SIGINT) },
		"killed child": func(c *ctlab) error {
			for pid, space := range c.children {
				if own, err := os.Readlink("/proc/self/ns/net"); err != nil || space == own {
					continue // the guardian
				}
				return syscall.Kill(pid, syscall.SIGKILL)
			}
			return fmt.Errorf("no child in a namespace among %v", c.children)
		},
	} {
		t.Run(name, func(t *testing.T) {
			conntracktest.Privileged(t, "nft")
			before := idleMax(t)
			c := startAttack(t)
			if now := readMax(t); now == before {
				t.Errorf("nf_conntrack_max is %s during the run, as before", now)
			}
			if len(c.children) != 4 {
				t.Errorf("children are %v, want services, clients, flood and guardian", c.children)
			}
			c.endWith(t, end)
			c.checkGone(t, before)
		})
	}
}

// A guard at work dies with the lab.
func TestNothingStaysOfTheGuard(t *testing.T) {
	conntracktest.Privileged(t, "nft", "go")
	before := idleMax(t)
	c := startAttack(t, "--guard", "ctguard", "--ctguard", guardBinary(t))
	if len(c.children) != 5 {
		t.Errorf("children are %v, want four parts and the guard", c.children)
	}
	c.endWith(t, func(c *ctlab) error { return c.cmd.Process.Signal(syscall.SIGKILL) })
	c.checkGone(t, before)
}

// endWith ends the run and waits for every process of it.
func (c *ctlab) endWith(t *testing.T, end func(*ctlab) error) {
	t.Helper()
	fds := map[int]int{}
	for pid := range c.children {
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			t.Fatal(err)
		}
		fds[pid] = fd
	}
	if err := end(c); err != nil {
		t.Fatal(err)
	}
	if err := c.cmd.Wait(); err == nil {
		t.Error("ctlab says that all went well")
	}
	for pid, fd := range fds {
		awaitEnd(t, fd, pid)
		_ = unix.Close(fd)
	}
}

func (c *ctlab) checkGone(t *testing.T, before string) {
	t.Helper()
	if now := idleMax(t); now != before {
		t.Errorf("nf_conntrack_max is %s, it was %s before", now, before)
	}
	left, err := os.ReadDir(c.tmp)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range left {
		t.Errorf("%s was left in the temporary directory", f.Name())
	}
	own, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	spaces, err := filepath.Glob("/proc/[0-9]*/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range spaces {
		space, err := os.Readlink(path)
		if err != nil || space == own {
			continue
		}
		for _, was := range c.children {
			if space == was {
				t.Errorf("%s still lives in a namespace of the run", path)
			}
		}
	}
}
