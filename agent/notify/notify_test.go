package notify

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/time/rate"

	"ctguard/policy"
)

// counts is what became of events.
type counts struct {
	mu   sync.Mutex
	seen map[string]int
	news chan struct{}
}

func newCounts() *counts { return &counts{seen: make(map[string]int), news: make(chan struct{}, 1000)} }

func (c *counts) add(result string, n int) {
	c.mu.Lock()
	c.seen[result] += n
	c.mu.Unlock()
	c.news <- struct{}{}
}

func (c *counts) get(result string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.seen[result]
}

// run runs a notifier until the test ends.
func run(t *testing.T, n *Notifier) {
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { _ = n.Run(ctx); close(ended) }()
	t.Cleanup(func() { cancel(); <-ended })
}

// level is a change of the level.
func level(from, to int) policy.Event {
	return policy.Event{Kind: policy.LevelEvent, From: &from, To: &to, Reason: "because"}
}

// wait waits for something to become of events.
func wait(t *testing.T, c *counts) {
	t.Helper()
	select {
	case <-c.news:
	case <-time.After(20 * time.Second):
		t.Fatal("nothing became of it")
	}
}

// Only what should wake somebody is told.
func TestWants(t *testing.T) {
	c := Config{Webhook: "http://192.0.2.1/", Level: 5}
	for _, one := range []struct {
		event policy.Event
		want  bool
	}{{level(0, 4), false}, {level(4, 5), true}, {level(5, 4), true}, {level(4, 0), false},
		{policy.Event{Kind: policy.DegradedEvent}, true}, {policy.Event{Kind: policy.StepEvent}, false}} {
		if got := c.wants(one.event); got != one.want {
			t.Errorf("%+v: %t", one.event, got)
		}
	}
	if (Config{}).wants(level(0, 8)) {
		t.Error("without anybody to be told, an event is wanted")
	}
	var none *Notifier
	none.Tell(level(0, 8)) // which does nothing
}

// A program gets the notice, and a URL too.
func TestSend(t *testing.T) {
	file := filepath.Join(t.TempDir(), "notice")
	posted := make(chan []byte, 10)
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		text, _ := io.ReadAll(r.Body)
		posted <- text
	}))
	defer server.Close()
	c := newCounts()
	config := Config{Command: []string{"sh", "-c", `cat > "$1"`, "sh", file}, Webhook: server.URL}
	n := New(config, "blue", slog.Default(), c.add)
	n.Tell(level(0, 3))
	n.Tell(policy.Event{Kind: policy.DegradedEvent, Reason: "rules: no"})
	run(t, n)
	wait(t, c)
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if other := <-posted; !bytes.Equal(text, other) {
		t.Errorf("the program got %s, the URL %s", text, other)
	}
	var notice Notice
	if err := json.Unmarshal(text, &notice); err != nil {
		t.Fatal(err)
	}
	if len(notice.Events) != 2 || notice.Level != 3 || notice.Namespace != "blue" ||
		notice.Events[1].Reason != "rules: no" {
		t.Errorf("the notice is %+v", notice)
	}
	if c.get("sent") != 2 {
		t.Errorf("counted %v", c.seen)
	}
}

// However much happens, whoever tells does not wait, few notices go out, nothing is kept beyond the bound, and what
// was left out is told.
func TestBounded(t *testing.T) {
	posted := make(chan Notice, 100)
	stuck := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		var one Notice
		_ = json.NewDecoder(r.Body).Decode(&one)
		posted <- one
		<-stuck
	}))
	defer server.Close()
	c := newCounts()
	c.news = make(chan struct{}, 100_000)
	n := New(Config{Webhook: server.URL}, "host", slog.Default(), c.add)
	n.limiter = rate.NewLimiter(rate.Every(time.Hour), 2)
	run(t, n)
	n.Tell(level(0, 1))
	<-posted // it is with the server now, which does not answer
	began := time.Now()
	for range 10_000 {
		n.Tell(level(1, 2))
	}
	if took := time.Since(began); took > time.Second {
		t.Errorf("to tell took %s", took)
	}
	if got := c.get("left_out"); got != 10_000-queued {
		t.Errorf("%d were left out", got)
	}
	close(stuck)
	second := <-posted
	if len(second.Events) != queued || second.LeftOut != 10_000-queued {
		t.Errorf("the second notice has %d events and %d left out", len(second.Events), second.LeftOut)
	}
	n.Tell(level(2, 3))
	select {
	case third := <-posted:
		t.Errorf("a third notice went out: %+v", third)
	case <-time.After(200 * time.Millisecond): // that nothing comes can only be waited for
	}
}

// A program that hangs is ended with all that it started, one that fails is told of, and neither is the end.
func TestFailures(t *testing.T) {
	var log bytes.Buffer
	mark := filepath.Join(t.TempDir(), "mark")
	for _, one := range []struct {
		config Config
		want   string
	}{
		{Config{Command: []string{"sh", "-c", "sleep 60 & sleep 60; touch " + mark}}, "has not ended in 300ms"},
		{Config{Command: []string{"sh", "-c", "exit 3"}}, "sh: exit status 3"},
		{Config{Command: []string{"/nonexistent"}}, "/nonexistent: "},
		{Config{Webhook: "http://127.0.0.1:1/secret"}, "webhook: dial tcp"},
	} {
		c := newCounts()
		log.Reset()
		n := New(one.config, "host", slog.New(slog.NewTextHandler(&log, nil)), c.add)
		n.timeout = 300 * time.Millisecond
		began := time.Now()
		n.send(t.Context(), Notice{Events: []policy.Event{level(0, 1)}})
		if time.Since(began) > 10*time.Second {
			t.Errorf("%+v took %s", one.config, time.Since(began))
		}
		if c.get("failed") != 1 || !strings.Contains(log.String(), one.want) || strings.Contains(log.String(), "secret") {
			t.Errorf("%+v: counted %v, logged %s", one.config, c.seen, log.String())
		}
	}
	if _, err := os.Stat(mark); err == nil {
		t.Error("what hung went on")
	}
}
