package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ctguard/agent/conntrack/conntracktest"
	"ctguard/agent/control"
)

// host is a host with a peer, in network namespaces of their own, on which the program runs as it is built for users.
type host struct {
	*testing.T
	dir, state, config, program string
	peer                        *conntracktest.Peer
	daemon                      *exec.Cmd
	log                         *bytes.Buffer
	client                      *control.Client
}

// buildOnce builds the static program, and hands out its path; CTGUARD_PROGRAM names one that is there already.
var buildOnce = sync.OnceValues(func() (string, error) {
	if program := os.Getenv("CTGUARD_PROGRAM"); program != "" {
		return program, nil
	}
	return build(os.TempDir())
})

// build builds the program as make does, with more arguments of go build.
func build(dir string, arguments ...string) (string, error) {
	dir, err := os.MkdirTemp(dir, "ctguard-build-")
	if err != nil {
		return "", err
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		return "", err
	}
	program := filepath.Join(dir, "ctguard")
	c := exec.Command("go", append(append([]string{"build", "-o", program}, arguments...), ".")...)
	c.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := c.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build: %w: %s", err, out)
	}
	return program, nil
}

// capacity is the share of the table that a host of the tests has.
const capacity = 1000

// newHost makes a host for the test.
func newHost(t *testing.T) *host {
	t.Helper()
	conntracktest.Own(t, "nft", "ip", "setpriv")
	program, err := buildOnce()
	if err != nil {
		t.Fatal(err)
	}
	peer, err := conntracktest.NewPeer()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(peer.Close)
	h := &host{T: t, dir: conntracktest.Shared(t), peer: peer, program: program}
	h.state, h.config = filepath.Join(h.dir, "state"), filepath.Join(h.dir, "ctguard.toml")
	socket := filepath.Join(h.dir, "ctguard.sock")
	text := fmt.Sprintf("socket = %q\nstate_dir = %q\n[table]\ncapacity = %d\n", socket, h.state, capacity)
	if err := errors.Join(os.Mkdir(h.state, 0o755), os.WriteFile(h.config, []byte(text), 0o644)); err != nil {
		t.Fatal(err)
	}
	h.client = control.NewClient(socket)
	t.Cleanup(func() {
		if h.daemon != nil {
			_ = h.daemon.Process.Kill()
			_ = h.daemon.Wait()
		}
	})
	return h
}

// start starts the daemon, by way of another program if one is given, and waits until it guards.
func (h *host) start(prefix ...string) {
	h.Helper()
	h.launch(h.program, nil, prefix...)
	h.ready()
}

// launch starts a program as the daemon.
func (h *host) launch(program string, env []string, prefix ...string) {
	h.Helper()
	arguments := append(append([]string{}, prefix...), program, "run", "--config", h.config)
	h.log = new(bytes.Buffer)
	h.daemon = exec.Command(arguments[0], arguments[1:]...)
	h.daemon.Env = append(os.Environ(), env...)
	h.daemon.Stderr = h.log
	if err := h.daemon.Start(); err != nil {
		h.Fatal(err)
	}
}

// ready waits until the daemon answers.
func (h *host) ready() {
	h.Helper()
	h.until("the daemon answers", func() bool {
		return h.client.Call(h.Context(), "status", nil, new(control.Status)) == nil
	})
}

// until waits for something that must happen.
func (h *host) until(what string, happened func() bool) {
	h.Helper()
	for end := time.Now().Add(patience); !happened(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			h.Fatalf("%s: not within %s; %s", what, patience, h.log)
		}
	}
}

// status asks the daemon.
func (h *host) status() (s control.Status) {
	h.Helper()
	if err := h.client.Call(h.Context(), "status", nil, &s); err != nil {
		h.Fatal(err)
	}
	return s
}

// ask has the daemon go to a level, and does not wait for it.
func (h *host) ask(level int) error { return ask(h.Context(), h.client, level) }

func ask(ctx context.Context, client *control.Client, level int) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return client.Call(ctx, "hold", json.RawMessage(
		fmt.Sprintf(`{"kind":"pin","level":%d,"for":"1h","reason":"test"}`, level)), nil)
}

// hold has the daemon go to a level, and waits until it is there.
func (h *host) hold(level int) {
	h.Helper()
	if err := h.ask(level); err != nil {
		h.Fatal(err)
	}
	h.until(fmt.Sprintf("level %d", level), func() bool { return h.status().Level == level })
}

// stop ends the daemon as an operator does.
func (h *host) stop() {
	h.Helper()
	if err := h.daemon.Process.Signal(unix.SIGTERM); err != nil {
		h.Fatal(err)
	}
	if err := h.daemon.Wait(); err != nil {
		h.Errorf("the daemon ends with %v: %s", err, h.log)
	}
	h.daemon = nil
}

// snapshot returns the rules without their counters, and every setting of conntrack and of TCP that can be changed in
// this namespace, by name.
func (h *host) snapshot() map[string]string {
	h.Helper()
	rules, err := exec.Command("nft", "list", "ruleset").CombinedOutput()
	if err != nil {
		h.Fatalf("%s", rules)
	}
	all := map[string]string{"rules": counters.ReplaceAllString(string(rules), "counted")}
	for _, pattern := range []string{"netfilter/nf_conntrack_*", "ipv4/tcp_*"} {
		paths, err := filepath.Glob("/proc/sys/net/" + pattern)
		if err != nil {
			h.Fatal(err)
		}
		for _, path := range paths {
			if info, err := os.Stat(path); err != nil || info.Mode().Perm()&0o200 == 0 {
				continue
			}
			if value, err := os.ReadFile(path); err == nil {
				all[filepath.Base(path)] = strings.TrimSpace(string(value))
			}
		}
	}
	return all
}

// different returns what is no longer as it was.
func (h *host) different(before map[string]string) (list []string) {
	h.Helper()
	for name, now := range h.snapshot() {
		if was := before[name]; was != now {
			list = append(list, fmt.Sprintf("%s was %q and is %q", name, was, now))
		}
	}
	return list
}

// same fails the test where something is left behind.
func (h *host) same(before map[string]string) {
	h.Helper()
	if list := h.different(before); len(list) > 0 {
		h.Errorf("left behind: %s", strings.Join(list, "; "))
	}
}

// torn is the name of a file that was about to replace another.
var torn = regexp.MustCompile(`\.json\.([0-9]+|new)$`)

// leftovers returns the torn files in the state directory.
func (h *host) leftovers() (list []string) {
	entries, _ := os.ReadDir(h.state)
	for _, e := range entries {
		if torn.MatchString(e.Name()) {
			list = append(list, e.Name())
		}
	}
	return list
}

// converse opens a connection from the peer to a service on the port, which answers with what it is sent.
func (h *host) converse(port uint16) net.Conn {
	h.Helper()
	address := netip.AddrPortFrom(conntracktest.Here4, port).String()
	l, err := net.Listen("tcp", address)
	if err != nil {
		h.Fatal(err)
	}
	h.Cleanup(func() { l.Close() })
	go accept(l, echo)
	var c net.Conn
	h.peer.Do(func() { c, err = net.DialTimeout("tcp", address, patience) })
	if err != nil {
		h.Fatal(err)
	}
	h.Cleanup(func() { c.Close() })
	return c
}
