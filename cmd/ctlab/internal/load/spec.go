package load

import (
	"errors"
	"net/netip"
	"time"
)

// Role is the name under which Run is registered.
const Role = "load"

// Kind is a kind of traffic.
type Kind string

// The kinds.
const (
	// UDP is a question and its answer on a flow that stands: rounds a second.
	UDP Kind = "udp"
	// TCP is a new connection with one request and its answer: connections a second.
	TCP Kind = "tcp"
	// Bulk is one TCP stream to the server: bytes a second that it acknowledged.
	Bulk Kind = "bulk"
)

// Spec says what to send.
type Spec struct {
	Kind Kind `json:"kind"`
	// Sources are the clients' addresses and Targets whom they ask, both used in turn.
	Sources []netip.Addr     `json:"sources"`
	Targets []netip.AddrPort `json:"targets"`
	Workers int              `json:"workers"`
	// Warm is not counted, For is.
	Warm time.Duration `json:"warm"`
	For  time.Duration `json:"for"`
}

// Result says what was done in the time that counted.
type Result struct {
	Done   uint64 `json:"done"` // rounds, connections or bytes
	Failed uint64 `json:"failed"`
	// Seconds is how long it really was.
	Seconds float64 `json:"seconds"`
}

// Rate is what was done a second.
func (r Result) Rate() float64 {
	if r.Seconds == 0 {
		return 0
	}
	return float64(r.Done) / r.Seconds
}

func (s Spec) check() error {
	if len(s.Sources) == 0 || len(s.Targets) == 0 || s.Workers < 1 || s.For <= 0 {
		return errors.New("load needs sources, targets, workers and a time")
	}
	return nil
}
