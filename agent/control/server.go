package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/net/netutil"
	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"

	"ctguard/agent/config"
	"ctguard/agent/state"
)

// maxHeader bounds the header of a request, in bytes.
const maxHeader = 16 << 10

// Options say where a server listens and who may change things. They hold for its whole life.
type Options struct {
	Socket  string // path of the control socket
	Group   string // group whose members may change things, besides root; empty: none
	Metrics string // address that serves metrics and the page, and nothing else, to everybody; empty: none
	Details bool   // the page there also names sources, reasons and what was found of this host
}

// Server is the control socket, and the metrics address if there is one.
type Server struct {
	options   Options
	limits    limits
	board     *Board
	followers *places
	changes   *rate.Limiter // of others than root
	services  []service
	group     int // whose members may read
}

// service is one listener and what serves it.
type service struct {
	listener net.Listener
	http     *http.Server
}

// Listen opens the control socket, and the metrics address. A socket file that nobody answers on is left by
// a crash and is replaced.
func Listen(o Options, b *Board) (*Server, error) { return listen(o, b, usual) }

func listen(o Options, b *Board, lim limits) (*Server, error) {
	s := &Server{options: o, limits: lim, board: b, followers: newPlaces(lim.followers, lim.others),
		changes: rate.NewLimiter(lim.changes, lim.burst)}
	if err := s.open(); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// open does the work of listen.
func (s *Server) open() error {
	path := s.options.Socket
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("control socket: %w (socket names another path)", err)
	}
	if err := removeStale(path); err != nil {
		return err
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return fmt.Errorf("control socket: %w", err)
	}
	s.add(newBoundedListener(l, s.limits), s.handler())
	if s.group, err = share(path, s.options.Group); err != nil {
		return fmt.Errorf("control socket: %w", err)
	}
	if s.options.Metrics != "" {
		m, err := net.Listen("tcp", s.options.Metrics)
		if err != nil {
			return fmt.Errorf("metrics.listen: %w", err)
		}
		public := http.NewServeMux()
		public.Handle("/metrics", s.board.metrics.handler())
		public.Handle("GET /{$}", &page{board: s.board, details: s.options.Details})
		s.add(netutil.LimitListener(m, s.limits.scrapers), public)
	}
	return nil
}

// share lets the members of a group, or of the maker's where none is named, connect to a socket, and returns the
// group's number.
func share(path, group string) (gid int, err error) {
	if gid, err = groupID(group); err != nil {
		return 0, err
	}
	err = os.Chown(path, -1, gid)
	if errors.Is(err, fs.ErrPermission) {
		return 0, fmt.Errorf("group %s: the user that runs ctguard must be one of its members "+
			"(in the unit: SupplementaryGroups)", group)
	}
	if gid < 0 {
		gid = os.Getegid()
	}
	return gid, errors.Join(err, os.Chmod(path, 0o660))
}

// add makes a service of a listener. Whoever is too slow, to ask, to take the answer or to ask again, is cut
// off.
func (s *Server) add(l net.Listener, h http.Handler) {
	s.services = append(s.services, service{l, &http.Server{
		Handler: h, ConnContext: withPeer, MaxHeaderBytes: maxHeader,
		ReadTimeout: s.limits.request, WriteTimeout: s.limits.answer, IdleTimeout: s.limits.idle,
	}})
}

// Close closes the listeners, which removes the socket. It may be called more than once.
func (s *Server) Close() error {
	var errs []error
	for _, one := range s.services {
		if err := one.listener.Close(); !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
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

// Serve answers until ctx ends.
func (s *Server) Serve(ctx context.Context) error {
	var group errgroup.Group
	for _, one := range s.services {
		group.Go(func() error { return one.http.Serve(one.listener) })
	}
	<-ctx.Done()
	for _, one := range s.services {
		one.http.Close() // those who follow events wait for news for ever: they are cut off
	}
	if err := group.Wait(); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return ctx.Err()
}

// handler routes the control socket's requests.
func (s *Server) handler() http.Handler {
	local := http.NewServeMux()
	local.HandleFunc("GET /v1/status", s.read(s.sendStatus))
	local.HandleFunc("GET /v1/events", s.read(s.sendEvents))
	local.HandleFunc("GET /v1/history", s.read(s.sendHistory))
	local.HandleFunc("POST /v1/hold", change(s, hold))
	local.HandleFunc("POST /v1/revert", change(s, baseline))
	local.HandleFunc("POST /v1/auto", change(s, auto))
	local.HandleFunc("POST /v1/prefix", change(s, word))
	local.HandleFunc("GET /v1/explain", s.read(s.explain))
	local.HandleFunc("GET /metrics", s.read(s.board.metrics.handler().ServeHTTP))
	return local
}

// read makes a handler of what only reads: it checks who asks.
func (s *Server) read(answer http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if err := mayRead(peerOf(r.Context()), os.Geteuid(), s.group); err != nil {
			http.Error(w, err.Error(), http.StatusForbidden)
			return
		}
		answer(w, r)
	}
}

// sendStatus answers with the state after the last tick.
func (s *Server) sendStatus(w http.ResponseWriter, _ *http.Request) {
	status := s.board.Status()
	if status == nil {
		http.Error(w, "starting", http.StatusServiceUnavailable)
		return
	}
	sendJSON(w, status)
}

// allHistory is more than any history reaches back.
const allHistory = 24 * time.Hour

// sendHistory answers with what the table was like over the ?last=DURATION, or as long as it is known.
func (s *Server) sendHistory(w http.ResponseWriter, r *http.Request) {
	last := allHistory
	if text := r.URL.Query().Get("last"); text != "" {
		var err error
		if last, err = time.ParseDuration(text); err != nil {
			http.Error(w, fmt.Sprintf("last: %.32q is no duration, such as 10m", text), http.StatusBadRequest)
			return
		}
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(s.board.Points(last)) // where the other side is gone there is nobody to tell
}

// sendEvents answers with the events after ?since=N; with &wait=1 it waits until there are any. What it sends
// is shared by all who ask: a client that never reads costs its connection and nothing more.
func (s *Server) sendEvents(w http.ResponseWriter, r *http.Request) {
	after, _ := strconv.ParseUint(r.URL.Query().Get("since"), 10, 64)
	list, news := s.board.events.since(after)
	if len(list) == 0 && r.URL.Query().Get("wait") != "" {
		if !s.followers.take(isRoot(peerOf(r.Context()))) {
			http.Error(w, fmt.Sprintf("%d clients follow the events already: try again later", s.limits.followers),
				http.StatusServiceUnavailable)
			return
		}
		s.waiting(w)
		for len(list) == 0 && r.Context().Err() == nil {
			select {
			case <-news:
				list, news = s.board.events.since(after)
			case <-r.Context().Done():
			}
		}
		s.followers.free()
		s.answering(w)
	}
	w.Header().Set("Content-Type", "application/json")
	sendList(w, list)
}

// ask has the loop answer a request, however long that takes it.
func (s *Server) ask(w http.ResponseWriter, r *http.Request, request Request) ([]string, error) {
	s.waiting(w)
	defer s.answering(w)
	return s.board.ask(r.Context(), request)
}

// waiting lifts the time limit of a request that is there as a whole: from now on reading only shows when the
// client leaves. answering sets that of the answer.
func (*Server) waiting(w http.ResponseWriter) {
	_ = http.NewResponseController(w).SetReadDeadline(time.Time{})
}

func (s *Server) answering(w http.ResponseWriter) {
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(s.limits.answer))
}

// sendList writes texts as a JSON list.
func sendList(w http.ResponseWriter, list [][]byte) {
	before := "["
	for _, text := range list {
		if _, err := w.Write([]byte(before)); err != nil {
			return // the other side is gone: there is nobody to tell
		}
		_, _ = w.Write(text)
		before = ","
	}
	after := "]\n"
	if len(list) == 0 {
		after = "[]\n"
	}
	_, _ = w.Write([]byte(after))
}

// explain answers with the lines that say why ?prefix=P is limited or not.
func (s *Server) explain(w http.ResponseWriter, r *http.Request) {
	prefix, err := config.ParsePrefix(r.URL.Query().Get("prefix"))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	lines, err := s.ask(w, r, Explain{prefix})
	if err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	sendJSON(w, lines)
}

// change makes a handler of what changes something: it checks who asks, reads the body and has the loop do
// it.
func change[T any](s *Server, read func(T) (Request, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		peer := peerOf(r.Context())
		if err := mayChange(peer, s.options.Group); err != nil {
			http.Error(w, err.Error(), http.StatusForbidden)
			return
		}
		if !isRoot(peer) && !s.changes.Allow() {
			http.Error(w, "too many changes in a short time: try again in a moment", http.StatusTooManyRequests)
			return
		}
		var body T
		decoder := json.NewDecoder(http.MaxBytesReader(w, r.Body, s.limits.body))
		decoder.DisallowUnknownFields()
		if err := decoder.Decode(&body); err != nil {
			http.Error(w, "request: "+err.Error(), http.StatusBadRequest)
			return
		}
		request, err := read(body)
		if err == nil {
			_, err = s.ask(w, r, request)
		}
		switch {
		case errors.Is(err, state.ErrForgetful):
			http.Error(w, err.Error(), http.StatusInternalServerError)
		case err != nil:
			http.Error(w, err.Error(), http.StatusBadRequest)
		default:
			w.WriteHeader(http.StatusNoContent)
		}
	}
}

// sendJSON answers with v.
func sendJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v) // where the other side is gone there is nobody to tell
}
