package state

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"ctguard/agent/conntrack/conntracktest"
)

// squat holds the agents' name until its standard input ends.
func squat() int {
	if _, err := net.Listen("unix", instanceName); err != nil {
		fmt.Println(err)
		return 1
	}
	fmt.Println("squatting")
	_, _ = io.Copy(io.Discard, os.Stdin)
	return 0
}

// TestMain is also the program of another user; see [squat].
func TestMain(m *testing.M) {
	if os.Getenv("CTGUARD_TEST_SQUAT") != "" {
		os.Exit(squat())
	}
	os.Exit(m.Run())
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

// Anybody may hold the name; only root's process is an agent.
func TestSquatterKeepsNobodyOut(t *testing.T) {
	conntracktest.Own(t)
	cmd := exec.CommandContext(t.Context(), conntracktest.Reachable(t))
	cmd.Env, cmd.Dir = []string{"CTGUARD_TEST_SQUAT=1"}, "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	in, err := cmd.StdinPipe()
	out, err2 := cmd.StdoutPipe()
	if err := errors.Join(err, err2, cmd.Start()); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = errors.Join(in.Close(), cmd.Wait()) }()
	if line, _ := bufio.NewReader(out).ReadString('\n'); line != "squatting\n" {
		t.Fatalf("the squatter says %q", line)
	}
	if Running() {
		t.Error("a stranger's socket is taken for an agent")
	}
	if err := lock(t); !errors.Is(err, ErrNameTaken) {
		t.Errorf("beside a squatter: %v, want %v", err, ErrNameTaken)
	}
}

// However often somebody connects, the agent is still seen to run.
func TestRunningIsSeen(t *testing.T) {
	conntracktest.Own(t)
	if Running() {
		t.Error("an agent runs in a new namespace")
	}
	if err := lock(t); err != nil {
		t.Fatal(err)
	}
	var held []net.Conn
	defer func() {
		for _, c := range held {
			c.Close()
		}
	}()
	for range 5000 { // more than net.core.somaxconn is by default
		c, err := net.Dial("unix", instanceName)
		if errors.Is(err, syscall.EAGAIN) {
			continue // faster than they are hung up on
		}
		if err != nil {
			break
		}
		held = append(held, c)
	}
	seen := false
	for end := time.Now().Add(10 * time.Second); !seen && time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		seen = Running()
	}
	if !seen {
		t.Error("the agent is not seen any more")
	}
	if err := lock(t); !errors.Is(err, ErrRunning) {
		t.Errorf("a second lock: %v, want %v", err, ErrRunning)
	}
}
