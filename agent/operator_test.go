package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"ctguard/agent/config"
	"ctguard/agent/conntrack/conntracktest"
	"ctguard/agent/control"
	"ctguard/agent/control/controltest"
	"ctguard/policy"
)

// start runs an agent of a fake kernel until the test ends and returns its socket.
func start(t *testing.T, k *kernel, edit func(*config.Config)) (socket string) {
	t.Helper()
	c := parse(t, "")
	c.Socket, c.StateDir = filepath.Join(conntracktest.Shared(t), "s"), t.TempDir()
	if edit != nil {
		edit(&c)
	}
	a := newAgent(k, c, false)
	ctx, stop := context.WithCancel(context.Background())
	ready, ended := make(chan struct{}), make(chan error, 1)
	a.loop.ready = func() { close(ready) }
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

func TestStatus(t *testing.T) {
	k := newKernel(t)
	k.count = 100
	var s map[string]any
	if err := json.Unmarshal([]byte(controltest.MustAsk(t, start(t, k, nil), "/v1/status", http.StatusOK)),
		&s); err != nil {
		t.Fatal(err)
	}
	for _, field := range []string{"mode", "level", "fill_percent", "count", "capacity", "rate_per_second",
		"seconds_to_full",
		"kernel_drops", "steps", "limited", "override", "events"} {
		if _, ok := s[field]; !ok {
			t.Errorf("the status has no %s", field)
		}
	}
	if s["mode"] != "auto" || s["count"] != 100.0 || s["fill_percent"] != 10.0 || s["seconds_to_full"] != nil {
		t.Errorf("status: mode %v, count %v, fill %v, seconds to full %v", s["mode"], s["count"], s["fill_percent"],
			s["seconds_to_full"])
	}
}

// A request that the loop can't do is refused, and changes nothing.
func TestRefusedByTheLoop(t *testing.T) {
	socket := start(t, newKernel(t), nil)
	for request, want := range map[string]string{
		`/v1/hold {"kind":"pin","level":9,"for":"30m","reason":"test"}`:  "level 9 is not between 0 and 8",
		`/v1/hold {"kind":"pin","level":-1,"for":"30m","reason":"test"}`: "level -1 is not between 0 and 8",
		`/v1/hold {"kind":"pin","level":2,"for":"30m"}`:                  "a reason is needed",
	} {
		if text := controltest.MustAsk(t, socket, request, http.StatusBadRequest); !strings.Contains(text, want) {
			t.Errorf("%.80s: %q does not say %q", request, text, want)
		}
	}
	if text := controltest.MustAsk(t, socket, "/v1/status", http.StatusOK); !strings.Contains(text,
		`"override":null`) || !strings.Contains(text, `"words":[]`) {
		t.Errorf("something was changed: %s", text)
	}
	if text := controltest.MustAsk(t, socket, "/v1/events?since=0", http.StatusOK); strings.Contains(text, "override") {
		t.Errorf("something was told: %s", text)
	}
}

// Who only reads doesn't set the pace of the loop; who changes something sees it at once. A word that can't
// be kept is no fault of the request.
func TestPace(t *testing.T) {
	k := newKernel(t)
	k.faults["scan"] = errors.New("nothing to learn from") // what is learnt is looked at at once, too
	dir := filepath.Join(t.TempDir(), "gone")
	socket := start(t, k, func(c *config.Config) {
		c.StateDir = dir
		c.Policy.Calm = time.Hour
	})
	applied := func() int { k.mu.Lock(); defer k.mu.Unlock(); return k.applied }
	before := applied()
	for range 20 {
		controltest.MustAsk(t, socket, "/v1/explain?prefix=192.0.2.1", http.StatusOK)
	}
	if n := applied() - before; n > 0 {
		t.Errorf("%d ticks for 20 readers", n)
	}
	text := controltest.MustAsk(t, socket, `/v1/hold {"kind":"pin","level":1,"for":"30m","reason":"test"}`,
		http.StatusInternalServerError)
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
	if text := controltest.MustAsk(t, socket, "/v1/events", http.StatusOK); text != "[]" {
		t.Errorf("events of a calm start: %s", text)
	}
	waited := make(chan string, 1)
	go func() {
		_, text, err := controltest.Ask(socket, "/v1/events?since=0&wait=1")
		waited <- fmt.Sprint(text, err)
	}()
	controltest.MustAsk(t, socket, `/v1/hold {"kind":"freeze","for":"30m","reason":"first"}`, http.StatusNoContent)
	if text := <-waited; !strings.Contains(text, `"reason":"freeze: first, for 30m0s"`) {
		t.Errorf("the waiter got %s", text)
	}
	controltest.MustAsk(t, socket, `/v1/hold {"kind":"freeze","for":"30m","reason":"second"}`, http.StatusNoContent)
	if text := controltest.MustAsk(t, socket, "/v1/events?since=1&wait=1", http.StatusOK); strings.Contains(text,
		"first") || !strings.Contains(text, "second") {
		t.Errorf("after the first: %s", text)
	}
}

// A revert takes the operator's limits back too, and keeps the level at 0.
func TestBackToBaseline(t *testing.T) {
	k := newKernel(t)
	socket := start(t, k, nil)
	controltest.MustAsk(t, socket, `/v1/prefix {"prefix":"240.0.2.0/24","for":"1h","reason":"test"}`, http.StatusNoContent)
	controltest.MustAsk(t, socket, `/v1/prefix {"prefix":"198.51.100.0/24","release":true,"for":"1h","reason":"test"}`,
		http.StatusNoContent)
	k.mu.Lock()
	k.count = 1000
	k.mu.Unlock()
	controltest.MustAsk(t, socket, `/v1/revert {"for":"15m","reason":"test"}`, http.StatusNoContent)
	deadline := time.Now().Add(20 * time.Second)
	for {
		var s control.Status
		if err := json.Unmarshal([]byte(controltest.MustAsk(t, socket, "/v1/status", http.StatusOK)), &s); err != nil {
			t.Fatal(err)
		}
		if s.Count == 1000 && s.Level == 0 && len(s.Limited) == 0 &&
			s.Override != nil && s.Override.Kind == policy.Pin &&
			len(s.Words) == 1 && s.Words[0].Release {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("level %d, limited %v, override %v, words %v", s.Level, s.Limited, s.Override, s.Words)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// Operators may have a word on so many prefixes, and no more; on those they can still change their minds.
func TestWordsAreBounded(t *testing.T) {
	l := newAgent(newKernel(t), parse(t, ""), false).loop
	l.state = nil
	word := func(i int) error {
		return l.word(control.Word{Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 51, byte(i >> 8), byte(i)}), 32),
			For: time.Hour, Reason: "test"})
	}
	for i := range maxWords {
		if err := word(i); err != nil {
			t.Fatal(err)
		}
	}
	if err := word(maxWords); err == nil || !strings.Contains(err.Error(), "1000 prefixes are limited") {
		t.Errorf("one more: %v", err)
	}
	if err := word(7); err != nil {
		t.Errorf("one of them again: %v", err)
	}
}
