package workload

import (
	"net/netip"
	"time"

	"ctguard/cmd/ctlab/internal/measure"
)

// Role is the name under which Run is registered.
const Role = "workload"

// Spec says who asks whom, how often.
type Spec struct {
	// Sources are the clients' addresses, used in turn.
	Sources []netip.Addr `json:"sources"`
	// Session is the address of the silent session, apart from the others: a
	// guard may treat the peers of ssh sessions better.
	Session netip.Addr `json:"session"`
	// Targets are the addresses of the services, at most one per family for
	// any source to find its own.
	Targets  []netip.Addr `json:"targets"`
	HTTPPort uint16       `json:"http_port"`
	HTTPRate int          `json:"http_rate"`
	UDPPort  uint16       `json:"udp_port"`
	UDPRate  int          `json:"udp_rate"`
	// Overlay has the UDP questions go through a tunnel like VXLAN, whose directions are flows of their own.
	Overlay bool `json:"overlay"`
	// Lasting connections: half of them to LinePort, where a line gets an answer, half
	// to SpeakPort, where the client only listens.
	Lasting   int           `json:"lasting"`
	LinePort  uint16        `json:"line_port"`
	SpeakPort uint16        `json:"speak_port"`
	SSHPort   uint16        `json:"ssh_port"`
	Timeout   time.Duration `json:"timeout"`
}

// Result is what the clients got.
type Result struct {
	HTTP []measure.Request `json:"http"`
	UDP  []measure.Request `json:"udp"`
	// Lasting connections: how many were opened, and how many no longer
	// answered at some time.
	Lasting int `json:"lasting"`
	Lost    int `json:"lost"`
	// Resets is how many established connections, lasting or not, were ended by a reset.
	Resets int `json:"resets"`
	// Session says whether the silent session answered when it was used again.
	Session bool    `json:"session"`
	CPU     float64 `json:"cpu_seconds"`
	// Failures counts errors by their text, for a reader who wonders.
	Failures map[string]int `json:"failures,omitempty"`
}
