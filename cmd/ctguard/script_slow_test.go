package main

import (
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"
)

// openTerminal opens a pseudo terminal of a size: our side and the program's.
func openTerminal(width, height uint16) (ours, theirs *os.File, err error) {
	if ours, err = os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0); err != nil {
		return nil, nil, err
	}
	fd := int(ours.Fd())
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		return nil, nil, err
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		return nil, nil, err
	}
	if err := unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: height, Col: width}); err != nil {
		return nil, nil, err
	}
	theirs, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	return ours, theirs, err
}

// slowline RATE SECONDS program args... runs a program on a line of so many bytes a second for so long, then presses
// q: it must end within as long again, and have written no more than the line takes.
func slowline(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 3 {
		ts.Fatalf("usage: slowline RATE SECONDS program [args...]")
	}
	rate, err := strconv.Atoi(args[0])
	ts.Check(err)
	seconds, err := strconv.Atoi(args[1])
	ts.Check(err)
	ours, theirs, err := openTerminal(100, 30)
	ts.Check(err)
	defer ours.Close()
	c := exec.Command(args[2], args[3:]...)
	c.Dir, c.Stdin, c.Stdout, c.Stderr = ts.MkAbs("."), theirs, theirs, theirs
	c.Env = append(os.Environ(), "TERM=xterm-256color", "LANG=C.UTF-8", "PATH="+ts.Getenv("PATH"))
	c.SysProcAttr = &unix.SysProcAttr{Setsid: true, Setctty: true}
	ts.Check(c.Start())
	ts.Check(theirs.Close())
	var written atomic.Int64
	go func() {
		const pause = 50 * time.Millisecond
		some := make([]byte, max(1, rate/20))
		for {
			n, err := ours.Read(some)
			if written.Add(int64(n)); err != nil {
				return
			}
			time.Sleep(pause) // this is how slow the line is
		}
	}()
	ended := make(chan error, 1)
	go func() { ended <- c.Wait() }()
	span := time.Duration(seconds) * time.Second
	select {
	case err := <-ended:
		ts.Fatalf("it ended by itself: %v", err)
	case <-time.After(span):
	}
	_, err = ours.WriteString("q")
	ts.Check(err)
	pressed := time.Now()
	select {
	case err := <-ended:
		ts.Check(err)
	case <-time.After(span):
		c.Process.Kill()
		ts.Fatalf("it did not end within %s; the line took %d bytes", span, written.Load())
	}
	ts.Logf("%d bytes; ended %s after the key", written.Load(), time.Since(pressed).Round(time.Millisecond))
}
