package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"strings"
	"syscall"
	"time"
)

// answerWithin is how long a daemon that runs may take to answer.
const answerWithin = 15 * time.Second

var (
	// ErrNoDaemon says that nobody answers on the socket.
	ErrNoDaemon = errors.New("no daemon answers")
	// ErrSilent says that a daemon is there and does not answer: it hangs, or was stopped.
	ErrSilent = errors.New("the daemon does not answer")
	// ErrNotAllowed says that the socket may not be opened.
	ErrNotAllowed = errors.New("not allowed to ask the daemon")
)

// RefusedError is an answer that refuses the request.
type RefusedError struct {
	Code int // of HTTP; 400 for a request that is wrong
	Text string
}

// Error returns what the daemon said.
func (e *RefusedError) Error() string { return e.Text }

// Client asks the daemon at one control socket. It keeps a connection between requests, which counts at the
// daemon: one client for many requests, not the other way round.
type Client struct {
	socket string
	http   http.Client
}

// NewClient returns a client of the daemon at a socket.
func NewClient(socket string) *Client {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, "unix", socket)
	}
	return &Client{socket, http.Client{Transport: &http.Transport{DialContext: dial}}}
}

// Call asks for a path of the API, such as "status": GET without a body, POST with one. The answer is read
// into out unless that is nil. A call whose ctx is cancelled is no error and leaves out as it is.
func (c *Client) Call(ctx context.Context, path string, body, out any) (err error) {
	began := time.Now()
	method, text := http.MethodGet, []byte(nil)
	if body != nil {
		method = http.MethodPost
		if text, err = json.Marshal(body); err != nil {
			return err
		}
	}
	if !strings.Contains(path, "wait=") {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, answerWithin)
		defer cancel()
	}
	request, err := http.NewRequestWithContext(ctx, method, "http://ctguard/v1/"+path, bytes.NewReader(text))
	if err != nil {
		return err
	}
	response, err := c.http.Do(request)
	switch {
	case errors.Is(err, context.Canceled):
		return nil
	case errors.Is(err, context.DeadlineExceeded) || errors.Is(err, syscall.EAGAIN): // or takes no more connections
		return fmt.Errorf("%w at %s within %s", ErrSilent, c.socket, time.Since(began).Round(time.Second))
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w at %s: try sudo", ErrNotAllowed, c.socket)
	case err != nil:
		return fmt.Errorf("%w at %s", ErrNoDaemon, c.socket)
	}
	defer response.Body.Close()
	if response.StatusCode >= 300 {
		text, _ := io.ReadAll(io.LimitReader(response.Body, 4096))
		return &RefusedError{response.StatusCode, strings.TrimSpace(string(text))}
	}
	if out == nil {
		return nil
	}
	if err := json.NewDecoder(response.Body).Decode(out); err != nil && ctx.Err() == nil {
		return fmt.Errorf("read the daemon's answer: %w", err)
	}
	return nil
}
