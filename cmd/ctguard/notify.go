package main

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
)

// readyVariable tells an agent the descriptor of the pipe on which its supervisor listens to it.
const readyVariable = "CTGUARD_READY_FD"

// toSupervisor is that pipe; nil where no supervisor listens.
var toSupervisor = sync.OnceValue(func() *os.File {
	fd, err := strconv.Atoi(os.Getenv(readyVariable))
	if err != nil {
		return nil
	}
	return os.NewFile(uintptr(fd), "supervisor")
})

// announce tells whoever waits for it that the agent guards its table: its supervisor, or systemd.
func announce() {
	if pipe := toSupervisor(); pipe != nil {
		_, _ = pipe.WriteString("\n") // a supervisor that is gone has had its end signalled
		return
	}
	_, _ = daemon.SdNotify(false, daemon.SdNotifyReady) // no systemd is no fault
}

// beatPause is how often those are told who watch over this process.
const beatPause = time.Second

// pulse tells whoever watches over this process, its supervisor or systemd, that it lives. Each may be slow to
// listen: so a goroutine tells, and only when it was told to.
type pulse struct {
	beats chan struct{}
	last  time.Time
}

// newPulse returns a pulse that ends with ctx, or nil where nobody watches.
func newPulse(ctx context.Context) *pulse {
	p := &pulse{beats: make(chan struct{}, 1)}
	tell := func() { _, _ = daemon.SdNotify(false, daemon.SdNotifyWatchdog) }
	if pipe := toSupervisor(); pipe != nil {
		tell = func() { _, _ = pipe.WriteString("\n") }
	} else if due, err := daemon.SdWatchdogEnabled(false); due == 0 || err != nil {
		return nil // nobody watches
	}
	go func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-p.beats:
				tell()
			}
		}
	}()
	return p
}

// beat says that this process has done its work. It never waits, and is for one goroutine.
func (p *pulse) beat() {
	if p == nil || time.Since(p.last) < beatPause {
		return
	}
	p.last = time.Now()
	select {
	case p.beats <- struct{}{}:
	default:
	}
}

// stalled ends this process, whose loop hangs. What hangs may be where standard error leads, too: that is not waited
// for.
func stalled(where string) {
	told := make(chan struct{})
	go func() {
		fmt.Fprintf(os.Stderr, "ctguard: the loop hangs, so that this process ends and its rules go: %s\n", where)
		close(told)
	}()
	select {
	case <-told:
	case <-time.After(time.Second):
	}
	os.Exit(exitStalled)
}
