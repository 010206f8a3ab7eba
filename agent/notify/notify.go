package notify

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"slices"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/time/rate"

	"ctguard/policy"
)

// Config says how notices go out; none does where both are empty.
type Config struct {
	Command []string // a program and its arguments; it reads the notice from its standard input
	Webhook string   // a URL of http or https that the notice is posted to
	Level   int      // the lowest level whose coming and going is told
}

// Set reports whether anybody is to be told.
func (c Config) Set() bool { return len(c.Command) > 0 || c.Webhook != "" }

// Equal reports whether two configurations say the same.
func (c Config) Equal(d Config) bool {
	return slices.Equal(c.Command, d.Command) && c.Webhook == d.Webhook && c.Level == d.Level
}

// Notice is what is sent, as JSON. Field names are stable.
type Notice struct {
	Host      string         `json:"host"`
	Namespace string         `json:"namespace"`
	Level     int            `json:"level"`    // after the last of the events
	Events    []policy.Event `json:"events"`   // oldest first
	LeftOut   int            `json:"left_out"` // events that there was no room for
}

// Bounds of what is sent: the events that wait, how often a notice goes out, and how long that may take.
const (
	queued  = 64
	gap     = 10 * time.Second
	burst   = 3
	timeout = 10 * time.Second
)

// Notifier sends notices.
type Notifier struct {
	config    Config
	namespace string
	log       *slog.Logger
	count     func(result string, n int) // told what became of events: "sent", "failed" or "left_out"
	limiter   *rate.Limiter
	timeout   time.Duration
	queue     chan policy.Event
	leftOut   atomic.Int64
	level     int
}

// New returns a notifier of the agent of a namespace.
func New(c Config, namespace string, log *slog.Logger, count func(result string, n int)) *Notifier {
	return &Notifier{config: c, namespace: namespace, log: log, count: count, timeout: timeout,
		limiter: rate.NewLimiter(rate.Every(gap), burst), queue: make(chan policy.Event, queued)}
}

// Tell takes an event, if it is one to be told of, and never waits.
func (n *Notifier) Tell(e policy.Event) {
	if n == nil || !n.config.wants(e) {
		return
	}
	select {
	case n.queue <- e:
	default:
		n.leftOut.Add(1)
		n.count("left_out", 1)
	}
}

// wants reports whether an event is one to be told of.
func (c Config) wants(e policy.Event) bool {
	switch {
	case !c.Set():
		return false
	case e.Kind == policy.LevelEvent && e.From != nil && e.To != nil:
		return max(*e.From, *e.To) >= c.Level
	}
	return e.Kind == policy.DegradedEvent
}

// Run sends what is told until ctx ends.
func (n *Notifier) Run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case e := <-n.queue:
			if err := n.limiter.Wait(ctx); err != nil {
				return ctx.Err()
			}
			n.send(ctx, n.notice(e))
		}
	}
}

// notice puts together what has come until now.
func (n *Notifier) notice(first policy.Event) Notice {
	host, _ := os.Hostname() // a notice without a name is better than none
	notice := Notice{Host: host, Namespace: n.namespace, LeftOut: int(n.leftOut.Swap(0))}
	for e, more := first, true; more; {
		notice.Events = append(notice.Events, e)
		if e.Kind == policy.LevelEvent {
			n.level = *e.To
		}
		select {
		case e = <-n.queue:
		default:
			more = false
		}
	}
	notice.Level = n.level
	return notice
}

// send sends a notice both ways. What fails is logged and counted, and not tried again: by then it is old.
func (n *Notifier) send(ctx context.Context, notice Notice) {
	text, err := json.Marshal(notice)
	if err == nil {
		ctx, cancel := context.WithTimeout(ctx, n.timeout)
		defer cancel()
		err = errors.Join(n.start(ctx, text), n.post(ctx, text))
	}
	result := "sent"
	if err != nil {
		result = "failed"
		n.log.Warn("notify: " + err.Error())
	}
	n.count(result, len(notice.Events))
}

// start starts the program, and ends it with all that it started when its time is over.
func (n *Notifier) start(ctx context.Context, text []byte) error {
	if len(n.config.Command) == 0 {
		return nil
	}
	c := exec.CommandContext(ctx, n.config.Command[0], n.config.Command[1:]...)
	c.Stdin = bytes.NewReader(text)
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	c.Cancel = func() error { return syscall.Kill(-c.Process.Pid, syscall.SIGKILL) }
	c.WaitDelay = time.Second // for those who hold its pipes
	if err := c.Run(); err != nil {
		if ctx.Err() != nil {
			err = fmt.Errorf("has not ended in %s", n.timeout)
		}
		return fmt.Errorf("%s: %w", n.config.Command[0], err)
	}
	return nil
}

// post posts to the URL. Its path may be a secret: no error has it.
func (n *Notifier) post(ctx context.Context, text []byte) error {
	if n.config.Webhook == "" {
		return nil
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, n.config.Webhook, bytes.NewReader(text))
	if err != nil {
		return errors.New("webhook: the URL can't be used")
	}
	request.Header.Set("Content-Type", "application/json")
	response, err := http.DefaultClient.Do(request)
	var failed *url.Error
	switch {
	case errors.As(err, &failed):
		return fmt.Errorf("webhook: %w", failed.Err)
	case err != nil:
		return fmt.Errorf("webhook: %w", err)
	}
	response.Body.Close()
	if response.StatusCode >= 300 {
		return fmt.Errorf("webhook: answer %s", response.Status)
	}
	return nil
}
