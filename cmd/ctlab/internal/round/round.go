package round

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"ctguard/cmd/ctlab/internal/service"
)

// Kind is a kind of traffic.
type Kind string

// The kinds.
const (
	// UDP is a question and its answer on a flow that stands.
	UDP Kind = "udp"
	// TCP is a new connection with one request and its answer, which the client closes.
	TCP Kind = "tcp"
	// Bulk is a piece of one TCP stream to the server, 64 KiB.
	Bulk Kind = "bulk"
)

// piece is what a round of Bulk sends, in bytes.
const piece = 64 << 10

// Result says what was done.
type Result struct {
	Done    uint64 // rounds
	Failed  uint64
	Seconds float64
}

// Rate is what was done a second.
func (r Result) Rate() float64 {
	if r.Seconds == 0 {
		return 0
	}
	return float64(r.Done) / r.Seconds
}

// Do does rounds of a kind one after the other: for as long as warm without counting, and then for as long as span.
func (e *Ends) Do(kind Kind, warm, span time.Duration) (res Result, err error) {
	round, ok := map[Kind]func() error{UDP: e.ask, TCP: e.request, Bulk: e.send}[kind]
	if !ok {
		return res, fmt.Errorf("unknown kind of traffic %q", kind)
	}
	err = e.clients.Do(func() error {
		if err := stay(); err != nil {
			return err
		}
		if kind == Bulk {
			if err := e.connect(); err != nil {
				return err
			}
			defer e.disconnect()
		}
		for begin := time.Now(); time.Since(begin) < warm; {
			_ = round() // to warm up
		}
		begin := time.Now()
		for time.Since(begin) < span {
			if round() == nil {
				res.Done++
				continue
			}
			res.Failed++
			drain(e.web) // or the next one would take what is left of this one for its own
		}
		res.Seconds = time.Since(begin).Seconds()
		return nil
	})
	return res, err
}

// stay keeps the calling thread on the last processor.
func stay() error {
	var set unix.CPUSet
	set.Set(runtime.NumCPU() - 1)
	return os.NewSyscallError("sched_setaffinity", unix.SchedSetaffinity(0, &set))
}

var errShort = errors.New("less than expected came")

// ask is a round over UDP.
func (e *Ends) ask() error {
	if _, err := write(e.question, e.data[:64]); err != nil {
		return err
	}
	var from unix.Sockaddr
	err := uninterrupted(func() (err error) { _, from, err = unix.Recvfrom(e.answer, e.data[:], 0); return err })
	if err != nil {
		return err
	}
	if err := uninterrupted(func() error { return unix.Sendto(e.answer, e.data[:64], 0, from) }); err != nil {
		return err
	}
	_, err = read(e.question, e.data[:])
	return err
}

// request is a round over TCP.
func (e *Ends) request() error {
	from, to := e.from[e.next%len(e.from)], e.to[e.next%len(e.to)]
	e.next++
	client, err := dial(unix.SOCK_STREAM, from, to, service.HTTPPort)
	if err != nil {
		return err
	}
	server, err := accept(e.web, 0)
	if err != nil {
		return errors.Join(err, unix.Close(client))
	}
	err = errors.Join(pass(client, server, e.data[:128]), pass(server, client, e.data[:512]))
	// Who closes first waits in TIME_WAIT, and that is the client: it finds another port for each connection.
	return errors.Join(err, unix.Close(client), unix.Close(server))
}

// drain ends the connections that a listener has and nobody waits for any more.
func drain(listener int) {
	for {
		if ready, err := poll(listener, 0); err != nil || !ready {
			return
		}
		if fd, err := accept(listener, 0); err == nil {
			_ = unix.Close(fd)
		}
	}
}

// pass writes data, no more than fits a segment, to one end and reads it at the other.
func pass(from, to int, data []byte) error {
	if _, err := write(from, data); err != nil {
		return err
	}
	n, err := read(to, data)
	if err == nil && n != len(data) {
		err = errShort
	}
	return err
}

// connect makes the stream.
func (e *Ends) connect() (err error) {
	if e.stream[0], err = dial(unix.SOCK_STREAM, e.from[0], e.to[0], service.SinkPort); err != nil {
		return err
	}
	if e.stream[1], err = accept(e.sink, unix.SOCK_NONBLOCK); err != nil {
		return os.NewSyscallError("accept", err)
	}
	return os.NewSyscallError("fcntl", unix.SetNonblock(e.stream[0], true))
}

// disconnect ends the stream.
func (e *Ends) disconnect() {
	for i, fd := range e.stream {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
		e.stream[i] = -1
	}
}

// send is a round of the stream. Neither end may wait for the other while it is the other.
func (e *Ends) send() error {
	for sent, got := 0, 0; got < piece; {
		if sent < piece {
			n, err := write(e.stream[0], e.data[sent:])
			if err != nil && !errors.Is(err, unix.EAGAIN) {
				return err
			}
			sent += max(n, 0)
		}
		n, err := read(e.stream[1], e.data[:])
		switch {
		case errors.Is(err, unix.EAGAIN):
			if ready, err := poll(e.stream[1], patience*1000); err != nil || !ready {
				return errors.Join(err, errShort)
			}
		case err != nil:
			return err
		case n == 0:
			return errShort // the end of the stream
		}
		got += max(n, 0)
	}
	return nil
}
