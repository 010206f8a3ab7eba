package policy

import (
	"fmt"
	"net/netip"
	"strings"
	"time"
)

// Posture is the whole state that ctguard wants the kernel to be in. The zero value wants nothing:
// no table, every setting as the administrator has it.
type Posture struct {
	Level       int
	DropInvalid bool           // drop ct state invalid after conntrack
	Settings    map[string]int // sysctl name (without net.netfilter.) to value; a name that is absent keeps the administrator's value
	Notrack     []Notrack
	Limits      []Limit
	Caps        []Cap     // how many entries a source may keep; the excess is evicted
	LimitRate   int       // new flows per second that a limited source may open
	LimitBurst  int       // packets that it may open above the rate
	Synproxy    []uint16  // TCP ports of this host whose handshakes are answered with SYN cookies
	Handshake   Handshake // what synproxy says of this host
	LastCookies bool      // synproxy answers no more handshakes, and only takes the cookies that are on their way
	ClosedPorts bool      // drop local TCP and UDP packets that no socket waits for
	Budgets     []Budget
	Adopt       []Selector // TCP services that lived untracked: their connections are given entries
	Reject      bool       // answer dropped new flows of limited sources (TCP RST, ICMP) instead of dropping in silence
}

// HasRules reports whether p wants any rule in the kernel; without one there is no table.
func (p Posture) HasRules() bool {
	return p.DropInvalid || len(p.Notrack) > 0 || len(p.Limits) > 0 || len(p.Synproxy) > 0 || p.ClosedPorts || len(p.Budgets) > 0
}

// FlowClass is what the packets of a flood have in common.
type FlowClass struct {
	Protocol uint8  // IP protocol number
	Port     uint16 // destination port; 0 for protocols without ports
}

// Budget is how many new packets of a class may go on to conntrack. Of TCP only packets that open a
// connection are counted and dropped.
type Budget struct {
	Class FlowClass
	Rate  int // packets per second
}

// Notrack is one selector and how far its step has gone.
type Notrack struct {
	Selector Selector
	Stage    Stage
}

// Stage is how far a selector is on its way to being untracked.
type Stage uint8

// The stages of a selector, in order.
const (
	Watched Stage = iota // counted only, still tracked: what the host's rules pass before
	Trial                // untracked, its old entries kept so that it can be taken back
	Freed                // untracked for good, its old entries are evicted
	Leaving              // still untracked, while its connections are given entries again
)

// String returns the stage's name as the operator sees it.
func (s Stage) String() string { return [...]string{"watched", "trial", "freed", "leaving"}[s] }

// Protocol is a transport protocol by the name nft gives it.
type Protocol string

// The protocols a selector can name. ICMP stands for echo request and reply of IPv4 and IPv6.
const (
	TCP  Protocol = "tcp"
	UDP  Protocol = "udp"
	ICMP Protocol = "icmp"
)

// Selector names safe traffic of this host: packets to its own addresses (not by way of the
// loopback interface) and the answers to them. It is comparable, so it serves as a map key.
//
//	{TCP, 80}            tcp/80                       one listening service
//	{UDP, 53}            udp/53
//	{ICMP, 0}            echo                         echo requests to this host and its replies
//	{Group: true}        multicast                    multicast and broadcast, both ways
//	{TCP, 22, Remote: P} tcp/22 with 198.51.100.0/24  one service and one remote prefix
type Selector struct {
	Protocol Protocol
	Port     uint16       // this host's port, for TCP and UDP
	Remote   netip.Prefix // the other side; the zero Prefix means anywhere
	Group    bool         // multicast and broadcast destinations of any protocol; every other field is zero
}

// String returns the selector as configs and reports write it; [ParseSelector] reads it back.
func (s Selector) String() string {
	var name string
	switch {
	case s.Group:
		return "multicast"
	case s.Protocol == ICMP:
		name = "echo"
	default:
		name = fmt.Sprintf("%s/%d", s.Protocol, s.Port)
	}
	if s.Remote.IsValid() {
		name += " with " + s.Remote.String()
	}
	return name
}

// ParseSelector reads what [Selector.String] writes.
func ParseSelector(text string) (Selector, error) {
	var s Selector
	name, remote, restricted := strings.Cut(text, " with ")
	if restricted {
		p, err := netip.ParsePrefix(remote)
		if err != nil {
			return s, fmt.Errorf("selector %q: %w", text, err)
		}
		s.Remote = p.Masked()
	}
	switch {
	case name == "multicast" && !restricted:
		s.Group = true
		return s, nil
	case name == "echo":
		s.Protocol = ICMP
		return s, nil
	}
	var proto string
	if p, port, ok := strings.Cut(name, "/"); ok {
		proto = p
		if _, err := fmt.Sscanf(port, "%d", &s.Port); err == nil && fmt.Sprint(s.Port) == port && s.Port > 0 {
			if s.Protocol = Protocol(proto); s.Protocol == TCP || s.Protocol == UDP {
				return s, nil
			}
		}
	}
	return Selector{}, fmt.Errorf(`selector %q is none of "tcp/PORT", "udp/PORT", "echo", "multicast", or one of the first three followed by " with PREFIX"`, text)
}

// MarshalText writes the selector as [Selector.String] does.
func (s Selector) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText reads what MarshalText writes.
func (s *Selector) UnmarshalText(text []byte) error {
	parsed, err := ParseSelector(string(text))
	*s = parsed
	return err
}

// LimitKind is how a source is held back.
type LimitKind uint8

// The kinds of limit.
const (
	LimitNew LimitKind = iota // only new flows, above LimitRate; existing flows go on
	Block                     // every packet, before conntrack
)

// String returns the kind's name as the operator sees it.
func (k LimitKind) String() string { return [...]string{"limit", "block"}[k] }

// Limit holds one source back until a time. The kernel forgets it at Until by itself.
type Limit struct {
	Prefix netip.Prefix
	Kind   LimitKind
	Until  time.Time
	Reason string
}

// Cap is how many entries a source may keep.
type Cap struct {
	Prefix       netip.Prefix
	Keep         int
	SpareAssured bool // evict none of its assured entries, whatever the excess
	ClosingFirst bool // take closing entries before handshakes under way: its excess is not its fault
}
