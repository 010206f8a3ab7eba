package main

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ctguard/agent/conntrack/conntracktest"
	"ctguard/agent/control"
)

// Whatever the kernel answers for a while, the loop goes on, says what it can't do, and is whole again afterwards.
// strace makes the answers: so many calls fail in the running daemon while it goes up and down.
func TestHostileKernel(t *testing.T) {
	if testing.Short() {
		t.Skip("it takes a quarter of a minute")
	}
	conntracktest.Privileged(t, "strace")
	h := newHost(t)
	h.converse(8080)
	before := h.snapshot()
	h.startTried()
	h.hold(8)
	for _, fault := range []string{
		"recvmsg,recvfrom:error=ENOBUFS:when=2+3",
		"read,pread64:error=EINTR:when=2+3", // what does not block is never interrupted
		"sendmsg,sendto:error=ENOBUFS:when=1+3",
		"sendmsg,sendto:error=EBUSY:when=3+4",
		"recvmsg,recvfrom:retval=0:when=4+5", // nothing comes
		"read,pread64:retval=0:when=3+5",     // files are cut off
		"openat:error=EMFILE:when=2+3",
	} {
		t.Log(fault)
		h.inject(fault)
		h.until("it listens again", func() bool { return h.ask(8) == nil })
		h.hold(8)
		h.until("nothing is degraded, the rules are there", func() bool {
			return len(h.status().Degraded) == 0 && exec.Command("nft", "list", "table", "inet", "ctguard").Run() == nil
		})
	}
	h.stop()
	h.same(before)
}

// Whoever reads the log may go, as journald does for a moment when it is restarted: the daemon guards on.
func TestLostLog(t *testing.T) {
	if testing.Short() {
		t.Skip("it starts a daemon")
	}
	conntracktest.Privileged(t)
	h := newHost(t)
	reader, writer, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	h.log = new(bytes.Buffer)
	h.daemon = exec.Command(h.program, "run", "--config", h.config)
	h.daemon.Stderr = writer
	if err := errors.Join(h.daemon.Start(), writer.Close()); err != nil {
		t.Fatal(err)
	}
	h.ready()
	if err := reader.Close(); err != nil {
		t.Fatal(err)
	}
	h.hold(8) // which it logs
	h.hold(0)
	h.stop()
}

// inject has calls of the daemon fail, as strace(1) says it, while the daemon is sent down and up.
func (h *host) inject(fault string) {
	h.Helper()
	calls, _, _ := strings.Cut(fault, ":")
	pid := strconv.Itoa(h.daemon.Process.Pid)
	strace := exec.Command("strace", "-q", "-f", "-o", "/dev/null", "-p", pid,
		"-e", "trace="+calls, "-e", "inject="+fault)
	if err := strace.Start(); err != nil {
		h.Fatal(err)
	}
	for _, level := range []int{0, 8, 3, 8} {
		client := h.client
		go func() { _ = ask(h.Context(), client, level) }() // it may not be heard
		time.Sleep(150 * time.Millisecond)
	}
	_ = strace.Process.Signal(unix.SIGTERM)
	_ = strace.Wait() // by its own signal
	// The end of a connection that has not ended is nothing that a kernel says. The daemon believes it, and takes whoever
	// asks on that connection for gone.
	h.client = control.NewClient(filepath.Join(h.dir, "ctguard.sock"))
}
