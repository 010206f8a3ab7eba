package agent

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
	"sync"
	"syscall"
	"testing"
	"time"

	"ctguard/agent/conntrack/conntracktest"
	"ctguard/agent/control/controltest"
	"ctguard/policy"
)

// TestMain is also the program of another user, who asks again and again; see [pester].
func TestMain(m *testing.M) {
	if socket, ok := os.LookupEnv("CTGUARD_TEST_PESTER"); ok {
		os.Exit(pester(socket))
	}
	os.Exit(m.Run())
}

// request is one of everything that a client may ask for.
func request(i int) string {
	return []string{
		"/v1/status", "/v1/events?since=0", "/v1/explain?prefix=192.0.2.1", "/metrics",
		`/v1/hold {"kind":"cap","level":3,"for":"30m","reason":"test"}`, `/v1/auto {}`,
		`/v1/prefix {"prefix":"198.51.100.7","for":"1h","reason":"test"}`, `/v1/revert {"for":"1m","reason":"test"}`,
		"/v1/events?since=100000&wait=1",
	}[i%9]
}

// pester asks for everything but news until its standard input ends, and prints each answer's code.
func pester(socket string) int {
	ended := make(chan struct{})
	go func() { _, _ = os.Stdin.Read(make([]byte, 1)); close(ended) }()
	for i := 0; ; i++ {
		select {
		case <-ended:
			return 0
		default:
		}
		code, _, err := controltest.Ask(socket, request(i%8))
		if err != nil {
			fmt.Println(err)
			return 1
		}
		fmt.Println(code)
	}
}

// Whatever clients ask for, however many they are and whenever they leave, a reload meanwhile is no race, and
// the loop goes on. Run it under the race detector.
func TestReloadWhileClientsAsk(t *testing.T) {
	conntracktest.Privileged(t)
	c := parse(t, "")
	dir := conntracktest.Shared(t)
	c.Socket, c.StateDir, c.Path, c.Group = filepath.Join(dir, "s"), t.TempDir(), filepath.Join(dir, "c"), "daemon"
	write := func(i int) {
		text := fmt.Sprintf("socket = %q\nstate_dir = %q\ngroup = %q\n[table]\ncapacity = %d\n", c.Socket, c.StateDir,
			c.Group, 500+i)
		if err := os.WriteFile(c.Path, []byte(text), 0o600); err != nil {
			t.Error(err)
		}
	}
	a := newAgent(newKernel(t), c, false)
	ctx, stop := context.WithCancel(t.Context())
	ready, ended, hup := make(chan struct{}), make(chan error, 1), make(chan os.Signal)
	a.loop.ready = func() { close(ready) }
	go func() { ended <- a.Run(ctx, hup) }()
	<-ready
	if err := os.Chmod(c.Socket, 0o666); err != nil {
		t.Fatal(err)
	}

	// Two strangers, of whom one may change things: only for them the group is looked at.
	var strangers []func() string
	for _, gid := range []uint32{65534, 1} {
		cmd := exec.Command(conntracktest.Reachable(t))
		cmd.Env, cmd.Dir = []string{"CTGUARD_TEST_PESTER=" + c.Socket}, "/"
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: gid}}
		in, err := cmd.StdinPipe()
		var out strings.Builder
		cmd.Stdout = &out
		if err := errors.Join(err, cmd.Start()); err != nil {
			t.Fatal(err)
		}
		strangers = append(strangers, func() string {
			if err := errors.Join(in.Close(), cmd.Wait()); err != nil {
				t.Errorf("stranger: %v: %s", err, out.String())
			}
			return out.String()
		})
	}
	const reloads = 30
	var clients sync.WaitGroup
	done := make(chan struct{})
	for i := range 12 {
		clients.Go(func() {
			for n := i; ; n++ {
				select {
				case <-done:
					return
				default:
				}
				if n%3 == 0 || n%9 == 8 {
					leaveEarly(t, c.Socket, request(n))
				} else if code, text, err := controltest.Ask(c.Socket, request(n)); err != nil || code >= 300 {
					t.Errorf("%s: answer %d %s, %v", request(n), code, text, err)
				}
			}
		})
	}
	for i := range reloads {
		write(i)
		hup <- syscall.SIGHUP
		time.Sleep(20 * time.Millisecond)
	}
	close(done)
	clients.Wait()
	answers := map[string]bool{}
	for i, end := range strangers {
		for code := range strings.FieldsSeq(end()) {
			answers[fmt.Sprint(i, code)] = true
		}
	}
	for _, want := range []string{"0403", "1204", "1200"} {
		if !answers[want] {
			t.Errorf("strangers got %v, want %s among it: stranger and code", answers, want)
		}
	}
	text := controltest.MustAsk(t, c.Socket, "/v1/status", http.StatusOK)
	if want := fmt.Sprintf(`"capacity":%d`, 500+reloads-1); !strings.Contains(text, want) {
		t.Errorf("the last reload does not count: no %s in %.300s", want, text)
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if n := a.loop.told(policy.ConfigEvent, "reloaded"); n == 0 {
		t.Error("nothing was reloaded")
	}
}

// leaveEarly sends a request and is gone before it is answered.
func leaveEarly(t *testing.T, socket, request string) {
	c, err := net.Dial("unix", socket)
	if err != nil {
		t.Error(err)
		return
	}
	defer c.Close()
	path, body, post := strings.Cut(request, " ")
	method := http.MethodGet
	if post {
		method = http.MethodPost
	}
	fmt.Fprintf(c, "%s %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", method, path, len(body), body)
}
