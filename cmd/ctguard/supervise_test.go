package main

import (
	"io"
	"log/slog"
	"os"
	"os/exec"
	"slices"
	"testing"

	"ctguard/agent/config"
)

// fleet are processes that stand for agents: they live until their input ends.
type fleet struct {
	*testing.T
	*supervisor
	inputs  []io.Closer // by when they were started
	readies []*os.File
}

func newFleet(t *testing.T, n int) *fleet {
	f := &fleet{T: t}
	f.supervisor = newSupervisor(slog.New(slog.DiscardHandler), f.launchOne)
	for range n {
		c := &child{}
		f.children = append(f.children, c)
		f.start(c)
	}
	return f
}

func (f *fleet) launchOne(config.Namespace) (*os.File, *exec.Cmd, error) {
	r, w, err := os.Pipe()
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _ = w.Close() })
	process := exec.Command("cat")
	input, err := process.StdinPipe()
	if err == nil {
		err = process.Start()
	}
	if err != nil {
		f.Fatal(err)
	}
	f.inputs, f.readies = append(f.inputs, input), append(f.readies, w)
	return r, process, nil
}

// ready has the i-th that was started be ready.
func (f *fleet) ready(i int) {
	if _, err := f.readies[i].WriteString("."); err != nil {
		f.Fatal(err)
	}
	(<-f.news)()
}

// Of many agents only a few start at once: the next when one is ready, has ended, or takes too long.
func TestFewStartAtOnce(t *testing.T) {
	f := newFleet(t, startingAtOnce+4)
	started := func(want int, why string) {
		t.Helper()
		if len(f.inputs) != want {
			t.Fatalf("%d are started, want %d: %s", len(f.inputs), want, why)
		}
	}
	started(startingAtOnce, "the first")
	f.startWaiting()
	started(startingAtOnce, "nothing has happened")
	f.ready(1)
	started(startingAtOnce+1, "one is ready")
	_ = f.inputs[0].Close()
	_ = f.readies[0].Close()
	(<-f.news)()
	started(startingAtOnce+2, "one has ended")
	i := slices.IndexFunc(f.children, func(c *child) bool { return c.process != nil && !c.ready })
	f.children[i].started = f.children[i].started.Add(-startPatience)
	f.startWaiting()
	started(startingAtOnce+3, "one takes too long")
	for _, input := range f.inputs[1:] {
		_ = input.Close()
	}
	for _, w := range f.readies[1:] {
		_ = w.Close()
	}
	for f.stopping = true; f.running(); {
		(<-f.news)()
	}
	started(startingAtOnce+3, "it stops")
}
