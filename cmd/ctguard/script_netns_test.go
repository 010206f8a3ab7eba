package main

import (
	"errors"
	"net"
	"os"
	"os/exec"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"
)

// netns NAME... makes network namespaces as ip-netns(8) does. They have names in the script only: its
// thread, and so what it starts, gets a /run of its own, which ends with it.
func netns(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) == 0 {
		ts.Fatalf("usage: netns NAME...")
	}
	ts.Check(ownRun())
	for _, name := range args {
		text, err := exec.Command("ip", "netns", "add", name).CombinedOutput()
		ts.Logf("%s", text)
		ts.Check(err)
	}
}

// ownRun gives the calling thread a mount namespace and an empty /run, unless it has them.
func ownRun() error {
	const marker = "/run/ctguard-test"
	if _, err := os.Stat(marker); err == nil {
		return nil
	}
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return err
	}
	return errors.Join(
		unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""),
		unix.Mount("test", "/run", "tmpfs", 0, ""),
		os.WriteFile(marker, nil, 0o600))
}

// notify opens that socket for what the script starts from here on; notify READY=1 waits for that text. Beats may come
// before it: the loop's first one waits for nobody.
func notify(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) > 1 {
		ts.Fatalf("usage: notify [TEXT]")
	}
	own := ts.Value(ofScript{}).(*script)
	if len(args) == 0 {
		path := ts.MkAbs("notify.sock")
		socket, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
		ts.Check(err)
		ts.Defer(func() { socket.Close() })
		ts.Setenv("NOTIFY_SOCKET", path)
		own.notify = socket
		return
	}
	text := make([]byte, 4096)
	ts.Check(own.notify.SetReadDeadline(time.Now().Add(patience)))
	for told := ""; told != args[0]; {
		n, err := own.notify.Read(text)
		ts.Check(err)
		told = string(text[:n])
		ts.Logf("told %q", told)
	}
}
