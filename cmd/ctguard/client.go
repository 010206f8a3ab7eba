package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"

	"ctguard/agent/config"
	"ctguard/agent/control"
)

// call asks the daemon: GET without a body, POST with one. The answer is read into out unless that
// is nil.
func (p *program) call(ctx context.Context, path string, body, out any) error {
	conf, err := p.config()
	if err != nil {
		return err
	}
	if p.client == nil {
		p.client = control.NewClient(conf.Socket)
	}
	err = p.client.Call(ctx, path, body, out)
	var refused *control.RefusedError
	switch {
	case errors.Is(err, control.ErrNoDaemon):
		return &codedError{err, exitNoDaemon, p.noDaemonHint(conf)}
	case errors.As(err, &refused) && refused.Code == http.StatusBadRequest:
		return usage(err, "")
	}
	return err
}

// noDaemonHint says where a daemon may be, or how to have one.
func (p *program) noDaemonHint(c config.Config) string {
	if p.everywhere(c) && !slices.ContainsFunc(c.Namespaces, config.Namespace.IsHost) {
		return fmt.Sprintf("namespaces in the configuration does not have host: ask for one that it has, with --netns %s",
			c.Namespaces[0])
	}
	if !c.Namespace.IsHost() && !slices.Contains(c.Namespaces, c.Namespace) {
		return fmt.Sprintf("ctguard run --netns %s, or name it in namespaces in the configuration", c.Namespace)
	}
	return "systemctl start ctguard, or ctguard run"
}
