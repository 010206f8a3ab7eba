package role

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"time"
)

// stopGrace is how long a child may take from stop to its result.
const stopGrace = 15 * time.Second

// Starter starts a prepared command; *ns.Namespace is one.
type Starter interface {
	Start(*exec.Cmd) error
}

// Process is the parent's end of a role.
type Process struct {
	name   string
	cmd    *exec.Cmd
	in     io.WriteCloser
	enc    *json.Encoder
	stderr *tail

	msgs   chan message
	exited chan struct{}
	once   sync.Once
}

// Spawn starts a role and waits until it is ready.
func Spawn(s Starter, name string, spec any) (*Process, error) {
	if os.Getenv(envRole) != "" {
		return nil, errors.New("a role must not spawn roles: is the hook missing from main or TestMain?")
	}
	p := &Process{name: name, stderr: &tail{}, msgs: make(chan message, 4), exited: make(chan struct{})}
	p.cmd = exec.Command("/proc/self/exe")
	p.cmd.Env = append(os.Environ(), envRole+"="+name)
	p.cmd.Stderr = p.stderr
	in, err := p.cmd.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("spawn %s: %w", name, err)
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("spawn %s: %w", name, err)
	}
	p.in, p.enc = in, json.NewEncoder(in)
	if err := s.Start(p.cmd); err != nil {
		return nil, fmt.Errorf("spawn %s: %w", name, err)
	}
	go p.read(out)
	if err := p.enc.Encode(spec); err != nil {
		p.Kill()
		return nil, p.failed("take its specification", err)
	}
	m, ok := <-p.msgs
	if !ok || !m.Ready {
		p.Kill()
		return nil, p.failed("start", errors.New(m.Error))
	}
	return p, nil
}

func (p *Process) read(out io.Reader) {
	defer close(p.exited)
	defer close(p.msgs)
	dec := json.NewDecoder(out)
	for {
		var m message
		if err := dec.Decode(&m); err != nil {
			break
		}
		p.msgs <- m
	}
	_ = p.cmd.Wait() // the exit status says no more than the missing message
}

// Start tells the role when to begin.
func (p *Process) Start(at Instant) error {
	if err := p.enc.Encode(command{Op: "start", At: at}); err != nil {
		return p.failed("take the start command", err)
	}
	return nil
}

// Stop asks for the result, reads it into v and waits for the exit.
func (p *Process) Stop(v any) error {
	_ = p.enc.Encode(command{Op: "stop"}) // a child that has finished by itself no longer reads
	defer p.Kill()
	select {
	case m, ok := <-p.msgs:
		if !ok || m.Result == nil {
			return p.failed("deliver its result", errors.New(m.Error))
		}
		if v == nil {
			return nil
		}
		if err := json.Unmarshal(m.Result, v); err != nil {
			return p.failed("deliver a readable result", err)
		}
		return nil
	case <-time.After(stopGrace):
		return p.failed("stop", fmt.Errorf("no answer in %v", stopGrace))
	}
}

// Finish closes the role's input and lets it end by itself.
func (p *Process) Finish() error {
	_ = p.in.Close()
	select {
	case m, ok := <-p.msgs:
		if ok && m.Error != "" {
			return p.failed("finish", errors.New(m.Error))
		}
	case <-time.After(stopGrace):
		return p.failed("finish", fmt.Errorf("still there after %v", stopGrace))
	}
	<-p.exited
	return nil
}

// Exited is closed when the process has ended, whatever the cause.
func (p *Process) Exited() <-chan struct{} { return p.exited }

// PID is the process id of the role.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Kill ends the process and waits for its end. It may be called any number of times.
func (p *Process) Kill() {
	p.once.Do(func() {
		_ = p.in.Close()
		_ = p.cmd.Process.Kill()
		for range p.msgs {
			continue // drain, so that the reader gets to its end
		}
		<-p.exited
	})
}

func (p *Process) failed(what string, err error) error {
	if s := strings.TrimSpace(p.stderr.String()); s != "" {
		return fmt.Errorf("role %s did not %s: %w (%s)", p.name, what, err, s)
	}
	return fmt.Errorf("role %s did not %s: %w", p.name, what, err)
}

// tail keeps the last of what a child wrote to its standard error.
type tail struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

const tailMax = 4096

func (t *tail) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf.Write(b)
	if extra := t.buf.Len() - tailMax; extra > 0 {
		t.buf.Next(extra)
	}
	return len(b), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.buf.String()
}
