package ns

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// ErrClosed is returned by Do and Start after Close.
var ErrClosed = errors.New("namespace is closed")

// Namespace is an anonymous network namespace and the one OS thread that lives
// in it. Its methods may be called from any goroutine.
type Namespace struct {
	name string
	id   string
	file *os.File
	jobs chan job
	quit chan struct{}
	gone chan struct{}
}

type job struct {
	fn   func() error
	done chan error
}

// New makes a network namespace. The name is for messages only.
func New(name string) (*Namespace, error) {
	n := &Namespace{
		name: name,
		jobs: make(chan job),
		quit: make(chan struct{}),
		gone: make(chan struct{}),
	}
	ready := make(chan error)
	go n.live(ready)
	if err := <-ready; err != nil {
		return nil, fmt.Errorf("make network namespace %s: %w", name, err)
	}
	return n, nil
}

// live is the thread of the namespace. It never unlocks: the thread cannot be
// given back to the scheduler in a foreign namespace, so it ends with the
// goroutine, and its end is what the kernel's parent-death signal tells to the
// processes started from it.
func (n *Namespace) live(ready chan<- error) {
	runtime.LockOSThread()
	defer close(n.gone)
	if err := n.enter(); err != nil {
		ready <- err
		return
	}
	ready <- nil
	for {
		select {
		case j := <-n.jobs:
			j.done <- j.fn()
		case <-n.quit:
			return
		}
	}
}

func (n *Namespace) enter() error {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return os.NewSyscallError("unshare", err)
	}
	f, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return err
	}
	n.file = f
	n.id, err = Current()
	return err
}

// Current names the network namespace of the calling thread, as in
// "net:[4026531833]".
func Current() (string, error) {
	return os.Readlink("/proc/thread-self/ns/net")
}

// Name is the name given to New.
func (n *Namespace) Name() string { return n.name }

// ID names the namespace as the kernel does.
func (n *Namespace) ID() string { return n.id }

// FD is a descriptor of the namespace, valid until Close.
func (n *Namespace) FD() int { return int(n.file.Fd()) }

// Do runs fn on the thread of the namespace and waits for it.
func (n *Namespace) Do(fn func() error) error {
	j := job{fn: fn, done: make(chan error, 1)}
	select {
	case n.jobs <- j:
		return <-j.done
	case <-n.quit:
		return fmt.Errorf("namespace %s: %w", n.name, ErrClosed)
	}
}

// Start starts cmd in the namespace. The kernel kills it with this process, or
// with Close, whichever comes first.
func (n *Namespace) Start(cmd *exec.Cmd) error {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	return n.Do(cmd.Start)
}

// Close ends the thread and drops the descriptor. Processes that were started
// here and still live are killed by the kernel.
func (n *Namespace) Close() {
	select {
	case <-n.quit:
		return
	default:
	}
	close(n.quit)
	<-n.gone
	_ = n.file.Close() // a descriptor that only holds the namespace
}
