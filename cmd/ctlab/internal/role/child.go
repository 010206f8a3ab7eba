package role

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// envRole carries the name of the role to the child.
const envRole = "CTLAB_ROLE"

// Func is the body of a role. It ends soon after ctx is cancelled, which is
// what stop does.
type Func func(ctx context.Context, c *Conn) error

// Conn is the child's end of the conversation.
type Conn struct {
	in    *json.Decoder
	out   *json.Encoder
	start chan Instant
}

type command struct {
	Op string  `json:"op"`
	At Instant `json:"at,omitempty"`
}

type message struct {
	Ready  bool            `json:"ready,omitempty"`
	Error  string          `json:"error,omitempty"`
	Result json.RawMessage `json:"result,omitempty"`
}

// Hook runs the role named in the environment and exits; it returns where there
// is none.
func Hook(roles map[string]Func) {
	name := os.Getenv(envRole)
	if name == "" {
		return
	}
	fn, ok := roles[name]
	if !ok {
		fmt.Fprintf(os.Stderr, "ctlab: unknown role %q\n", name)
		os.Exit(2)
	}
	c := &Conn{in: json.NewDecoder(os.Stdin), out: json.NewEncoder(os.Stdout), start: make(chan Instant, 1)}
	if err := fn(context.Background(), c); err != nil {
		_ = c.out.Encode(message{Error: err.Error()}) // the parent may be gone
		os.Exit(1)
	}
	os.Exit(0)
}

// Spec reads the specification. It is the first thing a role does.
func (c *Conn) Spec(v any) error {
	if err := c.in.Decode(v); err != nil {
		return fmt.Errorf("read specification: %w", err)
	}
	return nil
}

// Ready tells the parent that the role is set up. The context it returns is
// cancelled by stop; from here on the end of the input ends the process.
func (c *Conn) Ready(ctx context.Context) (context.Context, error) {
	ctx, cancel := context.WithCancel(ctx)
	go c.listen(cancel)
	if err := c.out.Encode(message{Ready: true}); err != nil {
		cancel()
		return nil, fmt.Errorf("report ready: %w", err)
	}
	return ctx, nil
}

// AwaitEnd is Ready for a role that has its work to do when the parent is gone:
// it returns at the end of the input, however that came about.
func (c *Conn) AwaitEnd() error {
	// A terminal's signals are the parent's business; the end of the input is ours.
	signal.Ignore(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGPIPE)
	if err := c.out.Encode(message{Ready: true}); err != nil {
		return fmt.Errorf("report ready: %w", err)
	}
	var cmd command
	for c.in.Decode(&cmd) == nil {
		continue // commands are not for this role
	}
	return nil
}

func (c *Conn) listen(cancel context.CancelFunc) {
	for {
		var cmd command
		if err := c.in.Decode(&cmd); err != nil {
			os.Exit(1) // the parent is gone
		}
		switch cmd.Op {
		case "start":
			select {
			case c.start <- cmd.At:
			default:
			}
		case "stop":
			cancel()
		}
	}
}

// Started waits for the start command and then for its instant.
func (c *Conn) Started(ctx context.Context) (Instant, error) {
	select {
	case <-ctx.Done():
		return 0, errors.New("stopped before the start")
	case at := <-c.start:
		return at, WaitUntil(ctx, at)
	}
}

// Result sends the outcome to the parent.
func (c *Conn) Result(v any) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode result: %w", err)
	}
	return c.out.Encode(message{Result: raw})
}

// WaitUntil waits for an instant or the end of ctx. Where both have come it is the
// end that counts, so a loop that runs late ends all the same.
func WaitUntil(ctx context.Context, at Instant) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	t := time.NewTimer(at.Until())
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
