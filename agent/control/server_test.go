package control

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"ctguard/agent/conntrack/conntracktest"
	"ctguard/agent/control/controltest"
	"ctguard/policy"
)

// TestMain is also the program of another user: one that asks the daemon, see [asUser].
func TestMain(m *testing.M) {
	if request, ok := os.LookupEnv("CTGUARD_TEST_REQUEST"); ok {
		os.Exit(stranger(request))
	}
	os.Exit(m.Run())
}

// stranger asks as another user and prints the answer.
func stranger(request string) int {
	socket, request, _ := strings.Cut(request, "|")
	code, text, err := controltest.Ask(socket, request)
	if err != nil {
		fmt.Println(err)
		return 1
	}
	fmt.Println(code, text)
	return 0
}

// asUser asks as another user, by running this test program.
func asUser(t *testing.T, uid, gid uint32, socket, request string, groups ...uint32) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), conntracktest.Reachable(t))
	cmd.Env = []string{"CTGUARD_TEST_REQUEST=" + socket + "|" + request}
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: gid, Groups: groups}}
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("as user %d: %v: %s", uid, err, out)
	}
	return strings.TrimSpace(string(out))
}

// running is a server whose loop answers everything.
type running struct {
	*Board
	server *Server
	socket string
	asked  atomic.Int64 // requests that reached the loop
}

// start runs a server until the test ends.
func start(t *testing.T, o Options, lim limits) *running {
	t.Helper()
	r := &running{Board: NewBoard()}
	r.Publish(&Status{Mode: "auto"})
	o.Socket = filepath.Join(conntracktest.Shared(t), "s")
	r.socket = o.Socket
	s, err := listen(o, r.Board, lim)
	if err != nil {
		t.Fatal(err)
	}
	r.server = s
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(ctx) }()
	go func() {
		for {
			select {
			case q := <-r.Questions():
				r.asked.Add(1)
				q.Answer([]string{"because"}, nil)
			case <-ctx.Done():
				return
			}
		}
	}()
	t.Cleanup(func() {
		stop()
		if err := errors.Join(<-ended, s.Close()); !errors.Is(err, context.Canceled) {
			t.Errorf("the server ended with: %v", err)
		}
	})
	return r
}

// followers returns how many clients wait for events.
func (r *running) followers() int {
	p := r.server.followers
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.taken
}

// dial opens a connection to a control socket until the test ends.
func dial(t *testing.T, socket string) net.Conn {
	t.Helper()
	c, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// isClosed reports whether the other side closes a connection within a time.
func isClosed(c net.Conn, within time.Duration) bool {
	_ = c.SetReadDeadline(time.Now().Add(within))
	for b := make([]byte, 4096); ; {
		if _, err := c.Read(b); err != nil {
			return !errors.Is(err, os.ErrDeadlineExceeded)
		}
	}
}

// Requests are refused that ask for too much, too little or something else, before the loop hears of them.
func TestRefusedRequests(t *testing.T) {
	r := start(t, Options{}, usual)
	for request, want := range map[string]string{
		`/v1/hold {"kind":"pin","level":2,"for":"30m"}`:                  "a reason is needed",
		`/v1/hold {"kind":"pin","level":2,"reason":"test"}`:              `--for "" is no duration`,
		`/v1/hold {"kind":"pin","level":2,"for":"-1s","reason":"test"}`:  `--for "-1s" is no duration`,
		`/v1/hold {"kind":"pin","level":2,"for":"169h","reason":"test"}`: "between 0s and 168h0m0s",
		`/v1/hold {"kind":"push","level":1,"for":"30m","reason":"test"}`: `kind "push" is none of ` +
			`pin, cap, freeze`,
		`/v1/hold {"kind":"pin","level":1,"for":"30m","reason":"test","force":true}`: `unknown field "force"`,
		`/v1/hold {"kind":"pin","level":"1","for":"30m","reason":"test"}`:            "request: ",
		`/v1/hold nonsense`: "request: ",
		`/v1/hold ` + `{"reason":"` + strings.Repeat("x", 100<<10) + `"}`: "request: ",
		`/v1/prefix {"prefix":"192.0.2.1/24","for":"1h","reason":"test"}`: "has bits beyond its length",
		`/v1/prefix {"prefix":"everybody","for":"1h","reason":"test"}`:    "is no address or prefix",
		`/v1/prefix {"prefix":"192.0.2.0/24","for":"1h"}`:                 "a reason is needed",
		`/v1/prefix {"prefix":"192.0.2.0/24","reason":"test"}`:            "is no duration",
		`/v1/auto {"now":true}`: `unknown field "now"`,
		`/v1/hold {"kind":"pin","level":1,"for":"30m","reason":"` + strings.Repeat("é",
			201) + `"}`: "the reason has 201 characters",
		`/v1/hold {"kind":"pin","level":1,"for":"30m","reason":"a\u001b[2Jb"}`: "the reason has the character U+001B",
		`/v1/prefix {"prefix":"192.0.2.1","for":"1h","reason":"one\ntwo"}`:     "the reason has the character U+000A",
		`/v1/prefix {"prefix":"192.0.2.1","for":"1h","reason":"a\u202eb"}`:     "the reason has the character U+202E",
		`/v1/revert {"for":"1h","reason":"a\u007fb"}`:                          "the reason has the character U+007F",
	} {
		if text := controltest.MustAsk(t, r.socket, request, http.StatusBadRequest); !strings.Contains(text, want) {
			t.Errorf("%.80s: %q does not say %q", request, text, want)
		}
	}
	controltest.MustAsk(t, r.socket, "/v1/nothing", http.StatusNotFound)
	controltest.MustAsk(t, r.socket, "/v1/hold", http.StatusMethodNotAllowed)
	if n := r.asked.Load(); n > 0 {
		t.Errorf("the loop was asked %d times", n)
	}
	controltest.MustAsk(t, r.socket, `/v1/hold {"kind":"pin","level":1,"for":"30m","reason":"`+strings.Repeat("é",
		200)+`"}`, http.StatusNoContent)
	controltest.MustAsk(t, r.socket, "/v1/explain?prefix=192.0.2.1", http.StatusOK)
	if n := r.asked.Load(); n != 2 {
		t.Errorf("the loop was asked %d times, want twice", n)
	}
}

// A body beyond the bound is refused without being read.
func TestBodyIsBounded(t *testing.T) {
	r := start(t, Options{}, usual)
	body := `{"for":"30m","reason":"test","kind":"` + strings.Repeat("x", int(usual.body)) + `"}`
	if text := controltest.MustAsk(t, r.socket, "/v1/hold "+body, http.StatusBadRequest); !strings.Contains(text,
		"too large") {
		t.Errorf("told %.200q", text)
	}
}

// Who may change things is judged by the credentials of the other end: root, and the group of the
// config by its members' own ids.
func TestPeers(t *testing.T) {
	conntracktest.Privileged(t)
	const nobody, daemon, hold = 65534, 1, `/v1/hold {"kind":"pin","level":1,"for":"30m","reason":"test"}`
	open := func(t *testing.T, o Options) string {
		socket := start(t, o, usual).socket
		if err := os.Chmod(socket, 0o666); err != nil {
			t.Fatal(err)
		}
		return socket
	}
	t.Run("without a group", func(t *testing.T) {
		socket := start(t, Options{}, usual).socket
		if info, err := os.Stat(socket); err != nil || info.Mode().Perm() != 0o660 {
			t.Errorf("the socket's rights are %v (%v), want 0660", info.Mode(), err)
		}
		controltest.MustAsk(t, socket, hold, http.StatusNoContent)
		socket = open(t, Options{})
		if got := asUser(t, nobody, nobody, socket, hold); !strings.HasPrefix(got, "403 only root may change things here") {
			t.Errorf("nobody holds: %s", got)
		}
		for _, request := range []string{`/v1/auto {}`, `/v1/revert {"for":"1m","reason":"test"}`,
			`/v1/prefix {"prefix":"192.0.2.0/24","for":"1m","reason":"test"}`} {
			if got := asUser(t, nobody, nobody, socket, request); !strings.HasPrefix(got, "403 ") {
				t.Errorf("nobody asks %s: %s", request, got)
			}
		}
		for _, path := range []string{"/v1/status", "/v1/events", "/metrics", "/v1/explain?prefix=192.0.2.1"} {
			if got := asUser(t, nobody, nobody, socket, path); !strings.HasPrefix(got, "403 only root and members") {
				t.Errorf("a stranger reads %s: %s", path, got)
			}
		}
		// The socket's group is that of whoever made it: here root's.
		if got := asUser(t, nobody, nobody, socket, "/v1/status", 0); !strings.HasPrefix(got, "200 ") {
			t.Errorf("a member of the socket's group reads: %s", got)
		}
		if got := asUser(t, nobody, nobody, socket, hold, 0); !strings.HasPrefix(got, "403 only root may change") {
			t.Errorf("a member of the socket's group holds, though none is named: %s", got)
		}
	})
	t.Run("with a group", func(t *testing.T) {
		socket := open(t, Options{Group: "daemon"})
		if info, err := os.Stat(socket); err != nil || info.Sys().(*syscall.Stat_t).Gid != daemon {
			t.Errorf("the socket is not the group's (%v)", err)
		}
		got := asUser(t, nobody, nobody, socket, hold)
		if got != "403 only root and members of group daemon may change things here" {
			t.Errorf("a stranger holds: %s", got)
		}
		if got := asUser(t, nobody, daemon, socket, hold); got != "204" {
			t.Errorf("a member holds: %s", got)
		}
		if got := asUser(t, nobody, nobody, socket, hold, 4, daemon); got != "204" {
			t.Errorf("a member by a supplementary group holds: %s", got)
		}
		if got := asUser(t, nobody, nobody, socket, "/v1/status", 4); !strings.HasPrefix(got, "403 ") {
			t.Errorf("a stranger with some other group reads: %s", got)
		}
		if got := asUser(t, nobody, nobody, socket, "/v1/status", daemon); !strings.HasPrefix(got, "200 ") {
			t.Errorf("a member reads: %s", got)
		}
		// The user database may say so; the process is none all the same.
		if got := asUser(t, daemon, nobody, socket, hold); !strings.HasPrefix(got, "403 ") {
			t.Errorf("one whose process is in other groups holds: %s", got)
		}
	})
}

// Members of the group may change so much in a time, root whatever it wants.
func TestChangesAreBounded(t *testing.T) {
	conntracktest.Privileged(t)
	const nobody, daemon = 65534, 1
	lim := usual
	lim.changes, lim.burst = 0, 2
	r := start(t, Options{Group: "daemon"}, lim)
	if err := os.Chmod(r.socket, 0o666); err != nil {
		t.Fatal(err)
	}
	for i, want := range []string{"204", "204", "429 too many changes in a short time"} {
		if got := asUser(t, nobody, daemon, r.socket, "/v1/auto {}"); !strings.HasPrefix(got, want) {
			t.Errorf("change %d of a member: %s, want %s", i+1, got, want)
		}
	}
	if got := asUser(t, nobody, daemon, r.socket, "/v1/status"); !strings.HasPrefix(got, "200 ") {
		t.Errorf("a member reads: %s", got)
	}
	controltest.MustAsk(t, r.socket, "/v1/auto {}", http.StatusNoContent)
}

// Over the metrics address nothing but metrics answers.
func TestMetricsAddress(t *testing.T) {
	address := freeAddress(t)
	start(t, Options{Metrics: address}, usual)
	for path, want := range map[string]int{"/metrics": http.StatusOK, "/v1/status": http.StatusNotFound,
		"/v1/events": http.StatusNotFound} {
		response, err := http.Get("http://" + address + path)
		if err != nil {
			t.Fatal(err)
		}
		response.Body.Close()
		if response.StatusCode != want {
			t.Errorf("%s: %d, want %d", path, response.StatusCode, want)
		}
	}
	response, err := http.Post("http://"+address+"/v1/hold", "application/json",
		strings.NewReader(`{"kind":"pin","level":4,"for":"1h","reason":"x"}`))
	if err != nil {
		t.Fatal(err)
	}
	response.Body.Close()
	if response.StatusCode != http.StatusNotFound {
		t.Errorf("a hold over the metrics address: %d", response.StatusCode)
	}
}

// freeAddress returns an address that nobody listens on.
func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// However many connections are left open at the metrics address, the agent keeps few of them.
func TestMetricsAddressIsBounded(t *testing.T) {
	address := freeAddress(t)
	socket := start(t, Options{Metrics: address}, usual).socket
	answered := 0
	for range usual.scrapers + 10 {
		c, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		fmt.Fprint(c, "GET /metrics HTTP/1.1\r\nHost: test\r\n\r\n")
		wait := 10 * time.Second
		if answered == usual.scrapers {
			wait = 20 * time.Millisecond
		}
		_ = c.SetReadDeadline(time.Now().Add(wait))
		if _, err := c.Read(make([]byte, 1)); err == nil {
			answered++
		}
	}
	if answered != usual.scrapers {
		t.Errorf("%d connections were served at a time, want %d", answered, usual.scrapers)
	}
	controltest.MustAsk(t, socket, "/v1/status", http.StatusOK)
}

// A socket that nobody answers on is replaced; anything else at its path is somebody's.
func TestListen(t *testing.T) {
	open := func(path, group string) error {
		s, err := Listen(Options{Socket: path, Group: group}, NewBoard())
		if err == nil {
			err = s.Close()
		}
		return err
	}
	t.Run("stale", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "s")
		l, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		l.(*net.UnixListener).SetUnlinkOnClose(false)
		l.Close()
		if err := open(path, ""); err != nil {
			t.Error(err)
		}
		if _, err := os.Lstat(path); !os.IsNotExist(err) {
			t.Errorf("the socket is left behind (%v)", err)
		}
	})
	t.Run("in use", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "s")
		l, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		if err := open(path, ""); err == nil || !strings.Contains(err.Error(), "is in use: another ctguard answers there") {
			t.Errorf("error %v", err)
		}
		if _, err := os.Lstat(path); err != nil {
			t.Errorf("the other's socket is gone: %v", err)
		}
	})
	t.Run("a file that is no socket", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "s")
		if err := os.WriteFile(path, []byte("a diary"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := open(path, ""); err == nil || !strings.Contains(err.Error(), "there is a file that is no socket") {
			t.Errorf("error %v", err)
		}
		if text, err := os.ReadFile(path); string(text) != "a diary" {
			t.Errorf("the file is %q now (%v)", text, err)
		}
	})
	t.Run("a symbolic link", func(t *testing.T) {
		dir := t.TempDir()
		path := filepath.Join(dir, "s")
		if err := os.Symlink(filepath.Join(dir, "target"), path); err != nil {
			t.Fatal(err)
		}
		if err := open(path, ""); err == nil || !strings.Contains(err.Error(), "no socket") {
			t.Errorf("error %v", err)
		}
	})
	t.Run("unknown group", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "s")
		if err := open(path, "no-such-group"); err == nil || !strings.Contains(err.Error(), `group "no-such-group"`) {
			t.Errorf("error %v", err)
		}
		if _, err := os.Lstat(path); !os.IsNotExist(err) {
			t.Errorf("the socket is left behind (%v)", err)
		}
	})
}

// hasty are the usual limits with less patience.
func hasty() limits {
	l := usual
	l.request, l.answer, l.idle = 300*time.Millisecond, time.Second, 300*time.Millisecond
	return l
}

// Connections that say nothing, or not all that they began to say, are closed: those of the metrics address,
// too, so that they don't keep scrapes out for ever.
func TestSilentConnectionsAreClosed(t *testing.T) {
	address := freeAddress(t)
	r := start(t, Options{Metrics: address}, hasty())
	for name, text := range map[string]string{
		"silent": "", "half a header": "GET /metrics HTTP/1.1\r\nHost:",
		"half a body": "POST /v1/auto HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{",
		"idle":        "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n",
	} {
		c := dial(t, r.socket)
		fmt.Fprint(c, text)
		if !isClosed(c, 10*time.Second) {
			t.Errorf("control socket, %s: still open", name)
		}
	}
	for range usual.scrapers {
		c, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
	}
	client := http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	response, err := client.Get("http://" + address + "/metrics")
	if err != nil {
		t.Fatalf("a scrape behind %d silent connections: %v", usual.scrapers, err)
	}
	response.Body.Close()
}

// However long the loop takes to answer, nobody is cut off before.
func TestSlowLoop(t *testing.T) {
	b := NewBoard()
	s, err := listen(Options{Socket: filepath.Join(t.TempDir(), "s")}, b, hasty())
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	go func() { _ = s.Serve(ctx) }()
	go func() {
		q := <-b.Questions()
		time.Sleep(4 * hasty().request)
		q.Answer([]string{"because"}, nil)
	}()
	if text := controltest.MustAsk(t, s.options.Socket, "/v1/explain?prefix=192.0.2.1",
		http.StatusOK); !strings.Contains(text, "because") {
		t.Errorf("answer %q", text)
	}
}

// So many control connections may be open at a time; those beyond are told, and root gets in where others have
// taken all that they may.
func TestControlConnectionsAreBounded(t *testing.T) {
	lim := usual
	lim.connections = 8
	r := start(t, Options{}, lim)
	for range lim.connections {
		dial(t, r.socket)
	}
	for range 20 { // more than are told at a time
		text := controltest.MustAsk(t, r.socket, "/v1/status", http.StatusServiceUnavailable)
		if !strings.Contains(text, "8 connections are open already") {
			t.Errorf("told %q", text)
		}
	}
	controltest.MustAsk(t, r.socket, `/v1/hold {"kind":"pin","level":1,"for":"30m","reason":"test"}`,
		http.StatusServiceUnavailable)

	p := newPlaces(8, 4)
	for range 6 {
		if !p.take(false) {
			t.Fatal("fewer than 6 of 8 places are for everybody")
		}
	}
	if p.take(false) {
		t.Error("root's places are taken by others")
	}
	for i := range 3 {
		if got := p.take(true); got != (i < 2) {
			t.Errorf("root's place %d: taken %v", i+1, got)
		}
	}
	p.free()
	if !p.take(true) {
		t.Error("a place that was given back is not to be had")
	}
}

// A place is given back when its connection ends, however it does.
func TestPlacesAreGivenBack(t *testing.T) {
	lim := hasty()
	lim.connections = 4
	r := start(t, Options{}, lim)
	for range 5 {
		for range lim.connections {
			dial(t, r.socket)
		}
		end := time.Now().Add(10 * time.Second)
		for code := 0; code != http.StatusOK; time.Sleep(10 * time.Millisecond) {
			if code, _, _ = controltest.Ask(r.socket, "/v1/status"); time.Now().After(end) {
				t.Fatalf("answer %d", code)
			}
		}
	}
}

// So many may wait for events at a time; those beyond are told, and events can still be read.
func TestFollowersAreBounded(t *testing.T) {
	lim := usual
	lim.followers = 4
	r := start(t, Options{}, lim)
	answers := make(chan int, lim.followers)
	for range lim.followers {
		go func() {
			code, _, _ := controltest.Ask(r.socket, "/v1/events?wait=1")
			answers <- code
		}()
	}
	taken := func() int {
		code, text, _ := controltest.Ask(r.socket, "/v1/events?since=9&wait=1")
		if code == http.StatusServiceUnavailable && !strings.Contains(text, "4 clients follow the events already") {
			t.Errorf("told %q", text)
		}
		return code
	}
	for end := time.Now().Add(10 * time.Second); r.followers() < lim.followers && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	if code := taken(); code != http.StatusServiceUnavailable {
		t.Errorf("a follower too many: answer %d", code)
	}
	controltest.MustAsk(t, r.socket, "/v1/events", http.StatusOK)
	r.Tell(policy.Event{Kind: policy.ConfigEvent, Reason: "news"})
	for range lim.followers {
		if code := <-answers; code != http.StatusOK {
			t.Errorf("a follower got %d", code)
		}
	}
	go func() {
		time.Sleep(200 * time.Millisecond)
		for range 9 {
			r.Tell(policy.Event{Kind: policy.ConfigEvent, Reason: "more"})
		}
	}()
	if code := taken(); code != http.StatusOK {
		t.Errorf("after the others have left: answer %d", code)
	}
}

// Followers that never read what they asked for cost no memory and are cut off.
func TestFollowersThatNeverRead(t *testing.T) {
	r := start(t, Options{}, hasty())
	for range eventsKept {
		r.Tell(policy.Event{Kind: policy.ConfigEvent, Reason: strings.Repeat("x", 400)})
	}
	text := controltest.MustAsk(t, r.socket, "/v1/events", http.StatusOK)
	if len(text) < 500<<10 {
		t.Fatalf("an answer of %d bytes fits the socket's buffers: nothing is shown", len(text))
	}
	var mute []net.Conn
	for range usual.followers {
		c := dial(t, r.socket)
		_ = c.(*net.UnixConn).SetReadBuffer(4096)
		fmt.Fprint(c, "GET /v1/events?wait=1 HTTP/1.1\r\nHost: x\r\n\r\n")
		mute = append(mute, c)
	}
	first, _ := r.events.since(0)
	second, _ := r.events.since(0)
	if &first[0][0] != &second[0][0] {
		t.Error("each reader has its own copy of an event")
	}
	time.Sleep(hasty().answer + time.Second)
	for i, c := range mute {
		if !isClosed(c, 10*time.Second) {
			t.Errorf("follower %d is still served", i)
		}
	}
}

// The client tells who does not answer from who may not be asked and from who refuses.
func TestClient(t *testing.T) {
	r := start(t, Options{}, usual)
	c := NewClient(r.socket)
	var s Status
	if err := c.Call(t.Context(), "status", nil, &s); err != nil || s.Mode != "auto" {
		t.Errorf("status %+v, %v", s, err)
	}
	var refused *RefusedError
	if err := c.Call(t.Context(), "hold", HoldRequest{}, nil); !errors.As(err,
		&refused) || refused.Code != http.StatusBadRequest {
		t.Errorf("an empty hold: %v", err)
	}
	if err := NewClient(r.socket+"-other").Call(t.Context(), "status", nil, &s); !errors.Is(err, ErrNoDaemon) {
		t.Errorf("nobody there: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := c.Call(ctx, "events?wait=1", nil, nil); err != nil {
		t.Errorf("given up: %v", err)
	}
}
