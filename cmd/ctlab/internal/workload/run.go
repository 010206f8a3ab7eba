package workload

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"ctguard/cmd/ctlab/internal/measure"
	"ctguard/cmd/ctlab/internal/role"
)

// Run is the role.
func Run(ctx context.Context, c *role.Conn) error {
	var spec Spec
	if err := c.Spec(&spec); err != nil {
		return err
	}
	w := &workload{spec: spec, failures: map[string]int{}}
	if err := w.openLasting(ctx); err != nil {
		return err
	}
	ask := w.udpRequest
	if spec.Overlay {
		tunnel, err := newOverlay()
		if err != nil {
			return err
		}
		defer func() { _ = tunnel.conn.Close() }()
		go tunnel.receive()
		ask = func(src, dst netip.Addr) error { return tunnel.request(src, dst, spec.Timeout) }
	}
	ctx, err := c.Ready(ctx)
	if err != nil {
		return err
	}
	if w.zero, err = c.Started(ctx); err != nil {
		return c.Result(Result{})
	}
	var wg sync.WaitGroup
	wg.Go(func() { w.http = w.steady(ctx, spec.HTTPRate, w.httpRequest) })
	wg.Go(func() { w.udp = w.steady(ctx, spec.UDPRate, ask) })
	for _, l := range w.lasting {
		wg.Go(func() { w.note(l.talk(ctx)) })
	}
	wg.Wait()
	return c.Result(w.result())
}

type workload struct {
	spec    Spec
	zero    role.Instant
	lasting []*lasting
	session *lasting

	http, udp []measure.Request

	mu       sync.Mutex
	failures map[string]int
	resets   int
}

func (w *workload) result() Result {
	// This runs after stop, which comes after the attack: the silent session is
	// used again now.
	res := Result{HTTP: w.http, UDP: w.udp, Lasting: len(w.lasting)}
	if w.session != nil {
		err := w.session.use()
		res.Session = err == nil
		w.note(err)
	}
	res.Failures, res.Resets = w.failures, w.resets
	for _, l := range w.lasting {
		if l.lost {
			res.Lost++
		}
	}
	var ru unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &ru) == nil {
		res.CPU = float64(ru.Utime.Nano()+ru.Stime.Nano()) / 1e9
	}
	return res
}

// steady makes requests at a rate until ctx ends, and waits for the last ones.
// A request that is late because the machine was busy is made nevertheless.
func (w *workload) steady(ctx context.Context, rate int, one func(src, dst netip.Addr) error) []measure.Request {
	if rate <= 0 {
		return nil
	}
	var mu sync.Mutex
	var out []measure.Request
	var wg sync.WaitGroup
	gap := time.Second / time.Duration(rate)
	for i := 0; role.WaitUntil(ctx, w.zero.Add(time.Duration(i)*gap)) == nil; i++ {
		src := w.spec.Sources[i%len(w.spec.Sources)]
		dst := w.target(src)
		wg.Go(func() {
			start := role.Now()
			err := one(src, dst)
			r := measure.Request{At: time.Duration(start - w.zero), Took: start.Since(), OK: err == nil}
			mu.Lock()
			out = append(out, r)
			mu.Unlock()
			w.note(err)
		})
	}
	wg.Wait()
	return out
}

func (w *workload) target(src netip.Addr) netip.Addr {
	for _, t := range w.spec.Targets {
		if t.Is4() == src.Is4() {
			return t
		}
	}
	return w.spec.Targets[0]
}

// note counts an error by its innermost text, without addresses. A reset that answers a SYN has
// another name: what is counted as one ended a connection that stood.
func (w *workload) note(err error) {
	if err == nil {
		return
	}
	text := err.Error()
	var errno syscall.Errno
	switch {
	case errors.As(err, &errno):
		text = errno.Error()
	case errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, context.DeadlineExceeded):
		text = "timeout"
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.failures[text]++
	if errors.Is(err, syscall.ECONNRESET) {
		w.resets++
	}
}

var request = []byte("GET / HTTP/1.1\r\nHost: ctlab\r\nConnection: close\r\n\r\n")

// httpRequest is one client's visit: connect, ask, read to the end.
func (w *workload) httpRequest(src, dst netip.Addr) error {
	deadline := time.Now().Add(w.spec.Timeout)
	d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(src, 0)), Deadline: deadline, KeepAlive: -1}
	conn, err := d.Dial("tcp", netip.AddrPortFrom(dst, w.spec.HTTPPort).String())
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	if err := conn.SetDeadline(deadline); err != nil {
		return err
	}
	if _, err := conn.Write(request); err != nil {
		return err
	}
	buf := make([]byte, 512)
	for got := 0; ; {
		n, err := conn.Read(buf[got:])
		got += n
		if err != nil || got == len(buf) {
			if got > 12 && string(buf[:12]) == "HTTP/1.1 200" {
				return nil
			}
			return fmt.Errorf("read response: %w", err)
		}
	}
}

// udpRequest is one question from a new port, with one answer.
func (w *workload) udpRequest(src, dst netip.Addr) error {
	conn, err := net.DialUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(src, 0)),
		net.UDPAddrFromAddrPort(netip.AddrPortFrom(dst, w.spec.UDPPort)))
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	if err := conn.SetDeadline(time.Now().Add(w.spec.Timeout)); err != nil {
		return err
	}
	if _, err := conn.Write([]byte("question")); err != nil {
		return err
	}
	var buf [64]byte
	_, err = conn.Read(buf[:])
	return err
}
