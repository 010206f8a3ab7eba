package main

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
	"slices"
	"strings"
	"time"

	"ctguard/agent"
)

// answerWithin is how long a daemon that runs may take to answer.
const answerWithin = 15 * time.Second

// call asks the daemon: GET without a body, POST with one. The answer is read into out unless that
// is nil.
func (p *program) call(ctx context.Context, path string, body, out any) error {
	config, err := p.config()
	if err != nil {
		return err
	}
	client := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, "unix", config.Socket)
	}}}
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
	response, err := client.Do(request)
	switch {
	case errors.Is(err, context.Canceled):
		return nil
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("the daemon at %s does not answer within %s", config.Socket, answerWithin)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("not allowed to ask the daemon at %s: try sudo", config.Socket)
	case err != nil:
		return &codedError{fmt.Errorf("no daemon answers at %s", config.Socket), exitNoDaemon, p.noDaemonHint(config)}
	}
	defer response.Body.Close()
	if response.StatusCode >= 300 {
		text, _ := io.ReadAll(io.LimitReader(response.Body, 4096))
		err := errors.New(strings.TrimSpace(string(text)))
		if response.StatusCode == http.StatusBadRequest {
			return usage(err, "")
		}
		return err
	}
	if out == nil {
		return nil
	}
	if err := json.NewDecoder(response.Body).Decode(out); err != nil && ctx.Err() == nil {
		return fmt.Errorf("read the daemon's answer: %w", err)
	}
	return nil
}

// noDaemonHint says where a daemon may be, or how to have one.
func (p *program) noDaemonHint(c agent.Config) string {
	if p.everywhere(c) && !slices.ContainsFunc(c.Namespaces, agent.Namespace.IsHost) {
		return fmt.Sprintf("namespaces in the configuration does not have host: ask for one that it has, with --netns %s", c.Namespaces[0])
	}
	if !c.Namespace.IsHost() && !slices.Contains(c.Namespaces, c.Namespace) {
		return fmt.Sprintf("ctguard run --netns %s, or name it in namespaces in the configuration", c.Namespace)
	}
	return "systemctl start ctguard, or ctguard run"
}
