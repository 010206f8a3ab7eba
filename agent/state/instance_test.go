package state

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ctguard/agent/conntrack/conntracktest"
)

// others is what this program does when it is started as another process: until its standard input ends.
var others = map[string]func() error{
	"squat": func() error {
		for _, name := range []string{instanceName, instanceName + "/0123456789abcdef"} {
			if _, err := net.Listen("unix", name); err != nil {
				return err
			}
		}
		return nil
	},
	"old":   func() error { _, err := net.Listen("unix", instanceName); return err },
	"agent": func() error { _, err := LockInstance(); return err },
}

// TestMain is also the program of another process; see [others].
func TestMain(m *testing.M) {
	if do, ok := others[os.Getenv("CTGUARD_TEST_OTHER")]; ok {
		if err := do(); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println("holding")
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// other starts another process in the calling thread's network namespace. It ends with the test.
func other(t *testing.T, what string, uid uint32) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), conntracktest.Reachable(t))
	cmd.Env, cmd.Dir = []string{"CTGUARD_TEST_OTHER=" + what}, "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	in, err := cmd.StdinPipe()
	out, err2 := cmd.StdoutPipe()
	if err := errors.Join(err, err2, cmd.Start()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = errors.Join(in.Close(), cmd.Wait()) })
	if line, _ := bufio.NewReader(out).ReadString('\n'); line != "holding\n" {
		t.Fatalf("the %s says %q", what, line)
	}
	return cmd
}

// lock takes the instance lock until the test ends.
func lock(t *testing.T) error {
	t.Helper()
	l, err := LockInstance()
	if l != nil {
		t.Cleanup(func() { l.Close() })
	}
	return err
}

// Anybody may hold such a name; only root's is an agent's.
func TestSquatterKeepsNobodyOut(t *testing.T) {
	conntracktest.Own(t)
	other(t, "squat", 65534)
	if Running() {
		t.Error("a stranger's socket is taken for an agent")
	}
	if err := lock(t); err != nil {
		t.Errorf("beside a squatter: %v", err)
	}
	if !Running() {
		t.Error("the agent is not seen beside a squatter")
	}
}

// One agent at a time, whatever is mounted where, an older one's lock counts, too, and the lock goes with its holder.
func TestOneAgent(t *testing.T) {
	for what, uid := range map[string]uint32{"agent": 0, "old": 0} {
		t.Run(what, func(t *testing.T) {
			conntracktest.Own(t)
			if Running() {
				t.Fatal("an agent runs in a new namespace")
			}
			holder := other(t, what, uid)
			if err := errors.Join(unix.Unshare(unix.CLONE_NEWNS), unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""),
				unix.Mount("test", "/run", "tmpfs", 0, "")); err != nil {
				t.Fatal(err)
			}
			if !Running() {
				t.Error("the agent is not seen")
			}
			if err := lock(t); !errors.Is(err, ErrRunning) {
				t.Errorf("a second lock: %v, want %v", err, ErrRunning)
			}
			if err := holder.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			_ = holder.Wait()
			if Running() {
				t.Error("the agent is seen after its end")
			}
			if err := lock(t); err != nil {
				t.Errorf("after its end: %v", err)
			}
		})
	}
}

// Whoever connects to the lock is refused by the kernel, at no cost of the agent's.
func TestLockTakesNoConnections(t *testing.T) {
	conntracktest.Own(t)
	if err := lock(t); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile("/proc/thread-self/net/unix")
	if err != nil {
		t.Fatal(err)
	}
	i := strings.Index(string(text), instanceName+"/")
	if i < 0 {
		t.Fatalf("no lock in\n%s", text)
	}
	name := strings.Fields(string(text[i:]))[0]
	for range 5000 { // more than net.core.somaxconn is by default
		if _, err := net.Dial("unix", name); !errors.Is(err, unix.ECONNREFUSED) {
			t.Fatalf("connected: %v", err)
		}
	}
	if !Running() {
		t.Error("the agent is not seen any more")
	}
}

// An agent that is stopped is ended, and nobody else is.
func TestKill(t *testing.T) {
	conntracktest.Own(t)
	if pid, err := Kill(t.Context()); pid != 0 || err != nil {
		t.Errorf("without an agent: process %d, %v", pid, err)
	}
	bystander := other(t, "squat", 65534)
	agent := other(t, "agent", 0)
	if err := agent.Process.Signal(unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if pid, err := Kill(ctx); pid != agent.Process.Pid || err != nil {
		t.Errorf("process %d, %v; want %d", pid, err, agent.Process.Pid)
	}
	if Running() {
		t.Error("the agent is still there")
	}
	if _, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", bystander.Process.Pid)); err != nil { // a dead one has none
		t.Errorf("the bystander: %v", err)
	}
}
