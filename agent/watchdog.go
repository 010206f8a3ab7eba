package agent

import (
	"context"
	"fmt"
	"runtime"
	"strings"
	"sync/atomic"
	"time"
)

// Bounds of how long the loop may be silent.
const (
	lookPause = time.Second
	// patience is how long the loop may take beyond the pause to its next tick. The longest that it may rightly take is
	// a write of the journal on a busy disk, and that is seconds.
	patience = 10 * time.Second
	// partingPatience is the same for taking everything back: two adoptions of adoptPatience, and the rest.
	partingPatience = 3 * adoptPatience
	// blindFor is how long the loop goes on with rules made for a table that it can't read any more.
	blindFor = patience
)

// watchdog ends the process when the loop hangs: rules that nobody looks after must go, and the kernel removes them
// with the process. It counts looks at the loop instead of reading a clock, so that a process that was stopped,
// or a machine that slept, is not taken for a loop that hangs.
type watchdog struct {
	looks    <-chan time.Time // one each lookPause
	left     atomic.Int64     // looks before the loop counts as stalled; the loop sets it
	stalled  func(string)     // ends the process
	letGo    func()           // gives the rules up without the loop; it may hang
	letGoFor time.Duration    // how long that may take, and finding out where the loop is
}

// newWatchdog returns a watchdog that calls stalled, with what hangs, once.
func newWatchdog(stalled func(string), letGo func()) *watchdog {
	w := &watchdog{looks: time.NewTicker(lookPause).C, stalled: stalled, letGo: letGo, letGoFor: time.Second}
	w.expect(0, patience)
	return w
}

// expect says that the loop has done something and what it may take from now: a pause, and so long.
func (w *watchdog) expect(pause, patience time.Duration) {
	if w != nil {
		w.left.Store(int64((pause + patience + lookPause - 1) / lookPause))
	}
}

// run looks at the loop until ctx ends.
func (w *watchdog) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-w.looks:
			if w.left.Add(-1) <= 0 {
				w.end()
				return
			}
		}
	}
}

// end gives the rules up and ends the process. A thread that waits for a disk in the kernel keeps a killed process's
// sockets open, and with them the rules: so the socket is closed first.
func (w *watchdog) end() {
	where, gone := make(chan string, 1), make(chan struct{})
	go func() {
		where <- hanging()
		w.letGo()
		close(gone)
	}()
	told := "in a place that can't be told"
	select {
	case told = <-where:
	case <-time.After(w.letGoFor):
	}
	select {
	case <-gone:
	case <-time.After(w.letGoFor):
	}
	w.stalled(told)
}

// suspects are what the agent can hang in, as it stands in a stack: while it works that is the loop, and when it is
// to stop also what it waits for.
var suspects = []string{"agent.(*loop).", "agent.walker.run", "control.(*Server).Serve"}

// hanging says where the agent is: the functions on a goroutine's stack, innermost first.
func hanging() string {
	all := make([]byte, 1<<20)
	all = all[:runtime.Stack(all, true)]
	for _, suspect := range suspects {
		for goroutine := range strings.SplitSeq(string(all), "\n\n") {
			if strings.Contains(goroutine, suspect) {
				return frames(goroutine)
			}
		}
	}
	return "in no goroutine"
}

// frames returns the functions of one goroutine's stack as one line, down to the loop's own.
func frames(goroutine string) string {
	head, stack, _ := strings.Cut(goroutine, ":\n")
	var list []string
	for line := range strings.Lines(stack) {
		end := strings.LastIndex(line, "(") // of the name: arguments follow
		if strings.HasPrefix(line, "\t") || strings.HasPrefix(line, "created by ") || end < 0 {
			continue // a file and a line, or who started it
		}
		name := line[:end]
		name = name[strings.LastIndex(name, "/")+1:]
		list = append(list, name)
		if strings.Contains(name, "agent.(*loop).") && len(list) > 1 {
			break
		}
	}
	return fmt.Sprintf("%s in %s", head, strings.Join(list, " < "))
}
