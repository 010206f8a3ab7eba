package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"ctguard/agent/conntrack/conntracktest"
	"ctguard/policy"
)

// TestMain is also the program of another user: one that asks the daemon, see [asUser], or [squat].
func TestMain(m *testing.M) {
	if os.Getenv("CTGUARD_TEST_SQUAT") != "" {
		os.Exit(squat())
	}
	if request, ok := os.LookupEnv("CTGUARD_TEST_REQUEST"); ok {
		os.Exit(stranger(request))
	}
	os.Exit(m.Run())
}

// client asks over a control socket.
func client(socket string) *http.Client {
	return &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		}}}
}

// ask sends a request, "PATH" or "PATH BODY", and returns code and text of the answer.
func ask(socket, request string) (int, string, error) {
	path, body, post := strings.Cut(request, " ")
	method := http.MethodGet
	if post {
		method = http.MethodPost
	}
	r, err := http.NewRequest(method, "http://ctguard"+path, strings.NewReader(body))
	if err != nil {
		return 0, "", err
	}
	response, err := client(socket).Do(r)
	if err != nil {
		return 0, "", err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	return response.StatusCode, strings.TrimSpace(string(text)), err
}

// stranger asks as another user and prints the answer.
func stranger(request string) int {
	socket, request, _ := strings.Cut(request, "|")
	code, text, err := ask(socket, request)
	if err != nil {
		fmt.Println(err)
		return 1
	}
	fmt.Println(code, text)
	return 0
}

// asUser asks as another user, by running this test program.
func asUser(t *testing.T, uid, gid uint32, socket, request string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), reachable(t))
	cmd.Env = []string{"CTGUARD_TEST_REQUEST=" + socket + "|" + request}
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: gid}}
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("as user %d: %v: %s", uid, err, out)
	}
	return strings.TrimSpace(string(out))
}

// reachable copies this program to where every user may run it.
func reachable(t *testing.T) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(self)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(shared(t), "stranger")
	if err := os.WriteFile(path, text, 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// shared makes a directory that every user may walk; those of t.TempDir are the owner's.
func shared(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "ctguard")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// start runs an agent of a fake kernel until the test ends and returns its socket.
func start(t *testing.T, k *kernel, edit func(*Config)) (socket string) {
	t.Helper()
	c := parse(t, "")
	c.Socket, c.StateDir = filepath.Join(shared(t), "s"), t.TempDir()
	if edit != nil {
		edit(&c)
	}
	a := newAgent(k, c, false)
	ctx, stop := context.WithCancel(context.Background())
	ready, ended := make(chan struct{}), make(chan error, 1)
	a.ready = func() { close(ready) }
	go func() { ended <- a.Run(ctx, nil) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Errorf("the agent ended with: %v", err)
		}
	})
	select {
	case <-ready:
	case err := <-ended:
		ended <- nil
		t.Fatal(err)
	}
	return c.Socket
}

// mustAsk asks what must be answered with a code, and returns the text.
func mustAsk(t *testing.T, socket, request string, want int) string {
	t.Helper()
	code, text, err := ask(socket, request)
	if err != nil {
		t.Fatalf("%s: %v", request, err)
	}
	if code != want {
		t.Fatalf("%s: answer %d %s, want %d", request, code, text, want)
	}
	return text
}

func TestStatus(t *testing.T) {
	k := newKernel(t)
	k.count = 100
	var s map[string]any
	if err := json.Unmarshal([]byte(mustAsk(t, start(t, k, nil), "/v1/status", http.StatusOK)), &s); err != nil {
		t.Fatal(err)
	}
	for _, field := range []string{"mode", "level", "fill_percent", "count", "capacity", "rate_per_second", "seconds_to_full",
		"kernel_drops", "steps", "limited", "override", "events"} {
		if _, ok := s[field]; !ok {
			t.Errorf("the status has no %s", field)
		}
	}
	if s["mode"] != "auto" || s["count"] != 100.0 || s["fill_percent"] != 10.0 || s["seconds_to_full"] != nil {
		t.Errorf("status: mode %v, count %v, fill %v, seconds to full %v", s["mode"], s["count"], s["fill_percent"], s["seconds_to_full"])
	}
}

// A request that asks for too much, too little or something else is refused, and changes nothing.
func TestRefusedRequests(t *testing.T) {
	socket := start(t, newKernel(t), nil)
	for request, want := range map[string]string{
		`/v1/hold {"kind":"pin","level":2,"for":"30m"}`:                              "a reason is needed",
		`/v1/hold {"kind":"pin","level":2,"reason":"test"}`:                          `--for "" is no duration`,
		`/v1/hold {"kind":"pin","level":2,"for":"-1s","reason":"test"}`:              `--for "-1s" is no duration`,
		`/v1/hold {"kind":"pin","level":2,"for":"169h","reason":"test"}`:             "between 0s and 168h0m0s",
		`/v1/hold {"kind":"pin","level":9,"for":"30m","reason":"test"}`:              "level 9 is not between 0 and 8",
		`/v1/hold {"kind":"pin","level":-1,"for":"30m","reason":"test"}`:             "level -1 is not between 0 and 8",
		`/v1/hold {"kind":"push","level":1,"for":"30m","reason":"test"}`:             `kind "push" is none of pin, cap, freeze`,
		`/v1/hold {"kind":"pin","level":1,"for":"30m","reason":"test","force":true}`: `unknown field "force"`,
		`/v1/hold {"kind":"pin","level":"1","for":"30m","reason":"test"}`:            "request: ",
		`/v1/hold nonsense`: "request: ",
		`/v1/hold ` + `{"reason":"` + strings.Repeat("x", 100<<10) + `"}`: "request: ",
		`/v1/prefix {"prefix":"192.0.2.1/24","for":"1h","reason":"test"}`: "has bits beyond its length",
		`/v1/prefix {"prefix":"everybody","for":"1h","reason":"test"}`:    "is no address or prefix",
		`/v1/prefix {"prefix":"192.0.2.0/24","for":"1h"}`:                 "a reason is needed",
		`/v1/prefix {"prefix":"192.0.2.0/24","reason":"test"}`:            "is no duration",
		`/v1/auto {"now":true}`: `unknown field "now"`,
	} {
		if text := mustAsk(t, socket, request, http.StatusBadRequest); !strings.Contains(text, want) {
			t.Errorf("%.80s: %q does not say %q", request, text, want)
		}
	}
	mustAsk(t, socket, "/v1/nothing", http.StatusNotFound)
	mustAsk(t, socket, "/v1/hold", http.StatusMethodNotAllowed)
	if text := mustAsk(t, socket, "/v1/status", http.StatusOK); !strings.Contains(text, `"override": null`) || !strings.Contains(text, `"manual": []`) {
		t.Errorf("something was changed: %s", text)
	}
	if text := mustAsk(t, socket, "/v1/events?since=0", http.StatusOK); strings.Contains(text, "override") {
		t.Errorf("something was told: %s", text)
	}
}

// Who may change things is judged by the credentials of the other end: root, and the group of the
// config by its members' own ids.
func TestPeers(t *testing.T) {
	conntracktest.Privileged(t)
	const nobody, daemon, hold = 65534, 1, `/v1/hold {"kind":"pin","level":1,"for":"30m","reason":"test"}`
	open := func(t *testing.T, edit func(*Config)) string {
		socket := start(t, newKernel(t), edit)
		if err := os.Chmod(socket, 0o666); err != nil {
			t.Fatal(err)
		}
		return socket
	}
	t.Run("without a group", func(t *testing.T) {
		socket := start(t, newKernel(t), nil)
		if info, err := os.Stat(socket); err != nil || info.Mode().Perm() != 0o660 {
			t.Errorf("the socket's rights are %v (%v), want 0660", info.Mode(), err)
		}
		mustAsk(t, socket, hold, http.StatusNoContent)
		socket = open(t, nil)
		if got := asUser(t, nobody, nobody, socket, hold); !strings.HasPrefix(got, "403 only root may change things here") {
			t.Errorf("nobody holds: %s", got)
		}
		for _, request := range []string{`/v1/auto {}`, `/v1/revert {"for":"1m","reason":"test"}`, `/v1/prefix {"prefix":"192.0.2.0/24","for":"1m","reason":"test"}`} {
			if got := asUser(t, nobody, nobody, socket, request); !strings.HasPrefix(got, "403 ") {
				t.Errorf("nobody asks %s: %s", request, got)
			}
		}
		if got := asUser(t, nobody, nobody, socket, "/v1/status"); !strings.HasPrefix(got, "200 ") {
			t.Errorf("nobody reads: %s", got)
		}
	})
	t.Run("with a group", func(t *testing.T) {
		socket := open(t, func(c *Config) { c.Group = "daemon" })
		if info, err := os.Stat(socket); err != nil || info.Sys().(*syscall.Stat_t).Gid != daemon {
			t.Errorf("the socket is not the group's (%v)", err)
		}
		if got := asUser(t, nobody, nobody, socket, hold); got != "403 only root and members of group daemon may change things here" {
			t.Errorf("a stranger holds: %s", got)
		}
		if got := asUser(t, nobody, daemon, socket, hold); got != "204" {
			t.Errorf("a member holds: %s", got)
		}
		if got := asUser(t, daemon, nobody, socket, hold); got != "204" {
			t.Errorf("a member whose group at present is another holds: %s", got)
		}
	})
}

// Over the metrics address nothing but metrics answers.
func TestMetricsAddress(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	l.Close()
	start(t, newKernel(t), func(c *Config) { c.Metrics = address })
	for path, want := range map[string]int{"/metrics": http.StatusOK, "/v1/status": http.StatusNotFound, "/v1/events": http.StatusNotFound} {
		response, err := http.Get("http://" + address + path)
		if err != nil {
			t.Fatal(err)
		}
		response.Body.Close()
		if response.StatusCode != want {
			t.Errorf("%s: %d, want %d", path, response.StatusCode, want)
		}
	}
	response, err := http.Post("http://"+address+"/v1/hold", "application/json", strings.NewReader(`{"kind":"pin","level":4,"for":"1h","reason":"x"}`))
	if err != nil {
		t.Fatal(err)
	}
	response.Body.Close()
	if response.StatusCode != http.StatusNotFound {
		t.Errorf("a hold over the metrics address: %d", response.StatusCode)
	}
}

// However many connections are left open at the metrics address, the agent keeps few of them.
func TestMetricsAddressIsBounded(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	l.Close()
	socket := start(t, newKernel(t), func(c *Config) { c.Metrics = address })
	answered := 0
	for range mostReaders + 10 {
		c, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		fmt.Fprint(c, "GET /metrics HTTP/1.1\r\nHost: test\r\n\r\n")
		wait := 10 * time.Second
		if answered == mostReaders {
			wait = 20 * time.Millisecond
		}
		_ = c.SetReadDeadline(time.Now().Add(wait))
		if _, err := c.Read(make([]byte, 1)); err == nil {
			answered++
		}
	}
	if answered != mostReaders {
		t.Errorf("%d connections were served at a time, want %d", answered, mostReaders)
	}
	mustAsk(t, socket, "/v1/status", http.StatusOK)
}

// Who only reads doesn't set the pace of the loop; who changes something sees it at once. A word that can't
// be kept is no fault of the request.
func TestPace(t *testing.T) {
	k := newKernel(t)
	dir := filepath.Join(t.TempDir(), "gone")
	socket := start(t, k, func(c *Config) {
		c.StateDir = dir
		c.Policy.Calm = time.Hour
	})
	applied := func() int { k.mu.Lock(); defer k.mu.Unlock(); return k.applied }
	before := applied()
	for range 20 {
		mustAsk(t, socket, "/v1/explain?prefix=192.0.2.1", http.StatusOK)
	}
	if n := applied() - before; n > 0 {
		t.Errorf("%d ticks for 20 readers", n)
	}
	text := mustAsk(t, socket, `/v1/hold {"kind":"pin","level":1,"for":"30m","reason":"test"}`, http.StatusInternalServerError)
	if !strings.Contains(text, "a restart will forget it") {
		t.Errorf("told %q", text)
	}
	for end := time.Now().Add(10 * time.Second); applied() == before; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("no tick after a change")
		}
	}
}

// Who waits for events gets the next one as it comes, and each once.
func TestEventsWait(t *testing.T) {
	socket := start(t, newKernel(t), nil)
	if text := mustAsk(t, socket, "/v1/events", http.StatusOK); text != "[]" {
		t.Errorf("events of a calm start: %s", text)
	}
	waited := make(chan string, 1)
	go func() {
		_, text, err := ask(socket, "/v1/events?since=0&wait=1")
		waited <- fmt.Sprint(text, err)
	}()
	mustAsk(t, socket, `/v1/hold {"kind":"freeze","for":"30m","reason":"first"}`, http.StatusNoContent)
	if text := <-waited; !strings.Contains(text, `"reason": "freeze: first, for 30m0s"`) {
		t.Errorf("the waiter got %s", text)
	}
	mustAsk(t, socket, `/v1/hold {"kind":"freeze","for":"30m","reason":"second"}`, http.StatusNoContent)
	if text := mustAsk(t, socket, "/v1/events?since=1&wait=1", http.StatusOK); strings.Contains(text, "first") || !strings.Contains(text, "second") {
		t.Errorf("after the first: %s", text)
	}
}

// A socket that nobody answers on is replaced; anything else at its path is somebody's.
func TestListen(t *testing.T) {
	listen := func(t *testing.T, path string) error {
		c := parse(t, "")
		c.Socket = path
		a := newAgent(newKernel(t), c, false)
		s, err := a.listen()
		if err == nil {
			for _, l := range s.listeners {
				err = errors.Join(err, l.Close())
			}
		}
		return errors.Join(err, a.close())
	}
	t.Run("stale", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "s")
		l, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		l.(*net.UnixListener).SetUnlinkOnClose(false)
		l.Close()
		if err := listen(t, path); err != nil {
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
		if err := listen(t, path); err == nil || !strings.Contains(err.Error(), "is in use: another ctguard answers there") {
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
		if err := listen(t, path); err == nil || !strings.Contains(err.Error(), "there is a file that is no socket") {
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
		if err := listen(t, path); err == nil || !strings.Contains(err.Error(), "no socket") {
			t.Errorf("error %v", err)
		}
	})
	t.Run("unknown group", func(t *testing.T) {
		c := parse(t, "")
		c.Socket, c.Group = filepath.Join(t.TempDir(), "s"), "no-such-group"
		a := newAgent(newKernel(t), c, false)
		if _, err := a.listen(); err == nil || !strings.Contains(err.Error(), `group "no-such-group"`) {
			t.Errorf("error %v", err)
		}
		if err := a.close(); err != nil {
			t.Error(err)
		}
		if _, err := os.Lstat(c.Socket); !os.IsNotExist(err) {
			t.Errorf("the socket is left behind (%v)", err)
		}
	})
}

// A revert takes the operator's limits back too, and keeps the level at 0.
func TestBackToBaseline(t *testing.T) {
	k := newKernel(t)
	socket := start(t, k, nil)
	mustAsk(t, socket, `/v1/prefix {"prefix":"240.0.2.0/24","for":"1h","reason":"test"}`, http.StatusNoContent)
	mustAsk(t, socket, `/v1/prefix {"prefix":"198.51.100.0/24","release":true,"for":"1h","reason":"test"}`, http.StatusNoContent)
	k.mu.Lock()
	k.count = 1000
	k.mu.Unlock()
	mustAsk(t, socket, `/v1/revert {"for":"15m","reason":"test"}`, http.StatusNoContent)
	deadline := time.Now().Add(20 * time.Second)
	for {
		var s Status
		if err := json.Unmarshal([]byte(mustAsk(t, socket, "/v1/status", http.StatusOK)), &s); err != nil {
			t.Fatal(err)
		}
		if s.Count == 1000 && s.Level == 0 && len(s.Limited) == 0 && s.Override != nil && s.Override.Kind == policy.Pin && len(s.Manual) == 1 && s.Manual[0].Release {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("level %d, limited %v, override %v, manual %v", s.Level, s.Limited, s.Override, s.Manual)
		}
		time.Sleep(5 * time.Millisecond)
	}
}
