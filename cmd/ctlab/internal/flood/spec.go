package flood

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"ctguard/cmd/ctlab/internal/ns"
	"ctguard/cmd/ctlab/internal/packet"
)

// Role is the name under which Run is registered.
const Role = "flood"

// Kind is a way to attack.
type Kind string

// The attacks.
const (
	// Handshake completes TCP handshakes and holds the connections.
	Handshake Kind = "handshake"
	// SYN sends SYNs and answers nothing.
	SYN Kind = "syn"
	// UDP sends datagrams, each from a new port.
	UDP Kind = "udp"
	// ACK sends stray ACKs that belong to no connection.
	ACK Kind = "ack"
	// Odd sends packets of a protocol for experiments, which has no ports.
	Odd Kind = "odd"
)

// maxPackets bounds every flood, whatever it was asked for.
const maxPackets = 20_000_000

// Spec says what to send.
type Spec struct {
	Kind       Kind             `json:"kind"`
	Interface  string           `json:"interface"`
	GatewayMAC packet.MAC       `json:"gateway_mac"`
	Targets    []netip.AddrPort `json:"targets"`
	// TargetPorts is how many ports are hit at random, from each target's own upwards; zero
	// is its own alone.
	TargetPorts int `json:"target_ports"`
	// Sources is where source addresses are taken from. With Count above zero the
	// first Count addresses (IPv6: the first Count /64s) are used in turn;
	// with Count zero each packet has a random one.
	Sources netip.Prefix `json:"sources"`
	Count   int          `json:"count"`
	// Ports is how many source ports each source uses in turn; zero is all.
	Ports int `json:"ports"`
	// Speak is how many segments a second are sent on the connections that stand, in turn: zero holds them in silence.
	// Of Handshake.
	Speak int `json:"speak"`
	// Rate is packets a second, for Handshake connections a second.
	Rate     int           `json:"rate"`
	Duration time.Duration `json:"duration"`
	// OneCore sends as much as one processor sends, and receives: the sender and with it the
	// receiving side of its link stay on that processor. Rate is without meaning then.
	OneCore bool `json:"one_core"`
	// On and Off make pulses; both zero is one steady attack.
	On  time.Duration `json:"on"`
	Off time.Duration `json:"off"`
	// Limit bounds the packets (connections) sent; zero is the package's own bound.
	Limit uint64 `json:"limit"`
	// Forbidden is the namespace that must not be flooded: ctlab's own.
	Forbidden string `json:"forbidden"`
}

// Result says what was sent.
type Result struct {
	Sent      uint64  `json:"sent"`
	Completed uint64  `json:"completed"`
	Errors    uint64  `json:"errors"`
	Seconds   float64 `json:"seconds"`
	CPU       float64 `json:"cpu_seconds"`
}

func (s *Spec) check() error {
	id, err := ns.Current()
	if err != nil {
		return fmt.Errorf("read own namespace: %w", err)
	}
	if s.Forbidden == "" || id == s.Forbidden {
		return errors.New("refusing to flood the namespace that ctlab was started in")
	}
	if !packet.Documentation(s.Sources) {
		return fmt.Errorf("refusing to send from %s: not a documentation address range", s.Sources)
	}
	if err := s.checkTargets(); err != nil {
		return err
	}
	if s.Rate <= 0 && !s.OneCore || s.Duration <= 0 {
		return errors.New("rate and duration must be above zero")
	}
	if s.Limit == 0 || s.Limit > maxPackets {
		s.Limit = maxPackets
	}
	return nil
}

func (s *Spec) checkTargets() error {
	if len(s.Targets) == 0 {
		return errors.New("no target")
	}
	for _, t := range s.Targets {
		if int(t.Port())+s.TargetPorts > 1<<16 {
			return fmt.Errorf("target %s has no %d ports above it", t, s.TargetPorts)
		}
		if !packet.Documentation(netip.PrefixFrom(t.Addr(), t.Addr().BitLen())) {
			return fmt.Errorf("refusing to send to %s: not a documentation address", t)
		}
		if t.Addr().Is6() != s.Sources.Addr().Is6() {
			return fmt.Errorf("target %s and sources %s are of different families", t, s.Sources)
		}
	}
	return nil
}
