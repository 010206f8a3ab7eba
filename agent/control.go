package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/net/netutil"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"ctguard/policy"
)

// server is the control socket, and the metrics address if there is one.
type server struct {
	http      *http.Server
	listeners []net.Listener
}

// Anybody may connect to the metrics address: so many may at a time, and none may take longer than
// this to take an answer.
const (
	mostReaders  = 64
	metricsWrite = 10 * time.Second
)

// peerKey finds the peer's credentials in a request's context.
type peerKey struct{}

// listen opens the control socket. A socket file that nobody answers on is left by a crash and is
// replaced.
func (a *Agent) listen() (*server, error) {
	path := a.config.Socket
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("control socket: %w (socket names another path)", err)
	}
	if err := removeStale(path); err != nil {
		return nil, err
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	a.release = append(a.release, func() error {
		_ = os.Remove(path) // closing the listener has removed it, unless it never served
		return nil
	})
	gid, err := groupID(a.config.Group)
	if err == nil {
		err = errors.Join(os.Chown(path, -1, gid), os.Chmod(path, 0o660))
	}
	if err != nil {
		return nil, fmt.Errorf("control socket: %w", errors.Join(err, l.Close()))
	}
	s := &server{listeners: []net.Listener{l}, http: &http.Server{
		Handler: a.handler(), ReadHeaderTimeout: 5 * time.Second, ConnContext: withPeer,
		IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10,
	}}
	if a.config.Metrics != "" {
		m, err := net.Listen("tcp", a.config.Metrics)
		if err != nil {
			return nil, fmt.Errorf("metrics.listen: %w", errors.Join(err, l.Close()))
		}
		s.listeners = append(s.listeners, netutil.LimitListener(m, mostReaders))
	}
	return s, nil
}

// removeStale removes the socket file of a daemon that is no more. One that somebody answers on, and
// a file that is no socket, stay and are an error.
func removeStale(path string) error {
	if c, err := net.Dial("unix", path); err == nil {
		c.Close()
		return fmt.Errorf("control socket %s is in use: another ctguard answers there; give each its own socket", path)
	}
	info, err := os.Lstat(path)
	if err != nil {
		return nil //nolint:nilerr // what is wrong with the path, if it is not only absent, is told when the socket is made
	}
	if info.Mode().Type() != os.ModeSocket {
		return fmt.Errorf("control socket %s: there is a file that is no socket (socket names another path)", path)
	}
	if err := os.Remove(path); err != nil {
		return fmt.Errorf("control socket: remove the stale one: %w", err)
	}
	return nil
}

// groupID returns the id of a group, or root's without a name.
func groupID(name string) (int, error) {
	if name == "" {
		return 0, nil
	}
	g, err := user.LookupGroup(name)
	if err != nil {
		return 0, fmt.Errorf("group %q: %w", name, err)
	}
	return strconv.Atoi(g.Gid)
}

// serve answers until ctx ends.
func (s *server) serve(ctx context.Context) error {
	var group errgroup.Group
	for _, l := range s.listeners {
		group.Go(func() error { return s.http.Serve(l) })
	}
	<-ctx.Done()
	// Those who follow events wait for news for ever: they are cut off.
	s.http.Close()
	if err := group.Wait(); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return ctx.Err()
}

// withPeer notes who is at the other end of a control connection (SO_PEERCRED, unix(7)).
func withPeer(ctx context.Context, c net.Conn) context.Context {
	conn, ok := c.(*net.UnixConn)
	if !ok {
		return ctx
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return ctx
	}
	return context.WithValue(ctx, peerKey{}, peerOf(raw))
}

// peerOf returns the credentials of the process at the other end; nil where nobody knows them.
func peerOf(raw syscall.RawConn) (cred *unix.Ucred) {
	_ = raw.Control(func(fd uintptr) { cred, _ = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	return cred
}

// handler routes the control socket's requests. Over the metrics address only /metrics answers.
func (a *Agent) handler() http.Handler {
	local := http.NewServeMux()
	local.HandleFunc("GET /v1/status", func(w http.ResponseWriter, _ *http.Request) { a.sendStatus(w) })
	local.HandleFunc("GET /v1/events", a.sendEvents)
	local.HandleFunc("POST /v1/hold", change(a, (*Agent).hold))
	local.HandleFunc("POST /v1/revert", change(a, (*Agent).backToBaseline))
	local.HandleFunc("POST /v1/auto", change(a, (*Agent).auto))
	local.HandleFunc("POST /v1/prefix", change(a, (*Agent).prefix))
	local.HandleFunc("GET /v1/explain", a.explain)
	local.Handle("GET /metrics", a.metrics.handler())
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if cred, _ := r.Context().Value(peerKey{}).(*unix.Ucred); cred == nil && r.URL.Path != "/metrics" {
			http.NotFound(w, r)
			return
		} else if cred == nil {
			_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(metricsWrite))
		}
		local.ServeHTTP(w, r)
	})
}

// sendStatus answers with the state after the last tick.
func (a *Agent) sendStatus(w http.ResponseWriter) {
	s := a.status.Load()
	if s == nil {
		http.Error(w, "starting", http.StatusServiceUnavailable)
		return
	}
	sendJSON(w, s)
}

// sendEvents answers with the events after ?since=N; with &wait=1 it waits until there are any.
func (a *Agent) sendEvents(w http.ResponseWriter, r *http.Request) {
	after, _ := strconv.ParseUint(r.URL.Query().Get("since"), 10, 64)
	for {
		var list []NumberedEvent
		var changed chan struct{}
		if err := a.ask(r.Context(), func(a *Agent) { list, changed = a.events.since(after, historySize), a.changed }); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		if len(list) > 0 || r.URL.Query().Get("wait") == "" {
			sendJSON(w, list)
			return
		}
		select {
		case <-changed:
		case <-r.Context().Done():
			return
		}
	}
}

// explain answers with the lines that say why ?prefix=P is or is not held back.
func (a *Agent) explain(w http.ResponseWriter, r *http.Request) {
	prefix, err := ParsePrefix(r.URL.Query().Get("prefix"))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	var lines []string
	if err := a.ask(r.Context(), func(a *Agent) { lines = a.machine.Explain(prefix) }); err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	sendJSON(w, lines)
}

// ask has the loop run a function between two ticks, and waits for it.
func (a *Agent) ask(ctx context.Context, f func(*Agent)) error {
	done := make(chan struct{})
	select {
	case a.asks <- func(a *Agent) { f(a); close(done) }:
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// change makes a handler of a function that changes something: it checks who asks, reads the body
// and has the loop run the function.
func change[T any](a *Agent, do func(*Agent, T) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if err := a.mayChange(r); err != nil {
			http.Error(w, err.Error(), http.StatusForbidden)
			return
		}
		var body T
		decoder := json.NewDecoder(http.MaxBytesReader(w, r.Body, 64<<10))
		decoder.DisallowUnknownFields()
		if err := decoder.Decode(&body); err != nil {
			http.Error(w, "request: "+err.Error(), http.StatusBadRequest)
			return
		}
		var fault error
		if err := a.ask(r.Context(), func(a *Agent) { fault, a.due = do(a, body), true }); err != nil {
			fault = err
		}
		if fault != nil {
			code := http.StatusBadRequest
			if errors.Is(fault, errForgetful) {
				code = http.StatusInternalServerError
			}
			http.Error(w, fault.Error(), code)
			return
		}
		w.WriteHeader(http.StatusNoContent)
	}
}

// mayChange returns why whoever asks may not change things; nil for root and the members of the
// configured group.
func (a *Agent) mayChange(r *http.Request) error {
	cred, _ := r.Context().Value(peerKey{}).(*unix.Ucred)
	if cred == nil {
		return errors.New("nobody knows who you are")
	}
	if cred.Uid == 0 {
		return nil
	}
	if a.config.Group == "" {
		return errors.New("only root may change things here (group in the config names who else may)")
	}
	gid, err := groupID(a.config.Group)
	if err != nil {
		return err
	}
	if int(cred.Gid) == gid {
		return nil
	}
	if u, err := user.LookupId(strconv.Itoa(int(cred.Uid))); err == nil {
		if groups, err := u.GroupIds(); err == nil && slices.Contains(groups, strconv.Itoa(gid)) {
			return nil
		}
	}
	return fmt.Errorf("only root and members of group %s may change things here", a.config.Group)
}

// sendJSON answers with v.
func sendJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "  ")
	_ = encoder.Encode(v) // where the other side is gone there is nobody to tell
}

// maxOverride is the longest that an operator may take the level out of ctguard's hands.
const maxOverride = 7 * 24 * time.Hour

// HoldRequest pins, caps or freezes the level.
type HoldRequest struct {
	Kind   policy.OverrideKind `json:"kind"`
	Level  int                 `json:"level"`
	For    string              `json:"for"` // a Go duration
	Reason string              `json:"reason"`
}

// hold sets an override.
func (a *Agent) hold(r HoldRequest) error {
	span, err := span(r.For, r.Reason)
	if err != nil {
		return err
	}
	if most := len(a.config.Policy.Steps); r.Kind != policy.Freeze && (r.Level < 0 || r.Level > most) {
		return fmt.Errorf("level %d is not between 0 and %d, the number of steps on this ladder", r.Level, most)
	}
	if !slices.Contains([]policy.OverrideKind{policy.Pin, policy.AtMost, policy.Freeze}, r.Kind) {
		return fmt.Errorf("kind %q is none of pin, cap, freeze", r.Kind)
	}
	ov := &policy.Override{Kind: r.Kind, Level: r.Level, Until: time.Now().Add(span), Reason: r.Reason}
	a.machine.SetOverride(ov)
	a.emit(policy.Event{Kind: policy.OverrideEvent, Reason: fmt.Sprintf("%s, for %s", ov, span)})
	return a.remember()
}

// auto gives the level back.
func (a *Agent) auto(struct{}) error {
	if ov := a.machine.Override(); ov != nil {
		a.emit(policy.Event{Kind: policy.OverrideEvent, Reason: fmt.Sprintf("given back by the operator: %s", ov)})
	}
	a.machine.SetOverride(nil)
	return a.remember()
}

// PrefixRequest holds a prefix back, or leaves it alone.
type PrefixRequest struct {
	Prefix  string `json:"prefix"`
	Release bool   `json:"release"`
	For     string `json:"for"` // a Go duration
	Reason  string `json:"reason"`
}

// prefix takes an operator's word on one prefix.
func (a *Agent) prefix(r PrefixRequest) error {
	span, err := span(r.For, r.Reason)
	if err != nil {
		return err
	}
	p, err := ParsePrefix(r.Prefix)
	if err != nil {
		return err
	}
	if allowed := slices.IndexFunc(a.facts.Allow, p.Overlaps); !r.Release && allowed >= 0 {
		return fmt.Errorf("%s is on the allowlist as %s: it is never limited", p, a.facts.Allow[allowed])
	}
	a.machine.SetManual(policy.Manual{Prefix: p, Release: r.Release, Until: time.Now().Add(span), Reason: r.Reason})
	word := "limited"
	if r.Release {
		word = "released"
	}
	a.emit(policy.Event{Kind: policy.LimitEvent, Prefix: p, Reason: fmt.Sprintf("%s by the operator for %s: %s", word, span, r.Reason)})
	return a.remember()
}

// span reads how long an operator's word holds; it must have an end and a reason.
func span(text, reason string) (time.Duration, error) {
	d, err := time.ParseDuration(text)
	if err != nil || d <= 0 || d > maxOverride {
		return 0, fmt.Errorf(`--for %q is no duration between 0s and %s, such as "30m"`, text, maxOverride)
	}
	if reason == "" {
		return 0, errors.New("a reason is needed: somebody will read it at three in the morning")
	}
	return d, nil
}
