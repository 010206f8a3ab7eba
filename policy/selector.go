package policy

import (
	"cmp"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// Protocol is a transport protocol by the name nft gives it.
type Protocol string

// The protocols a selector can name. ICMP stands for echo request and reply of IPv4 and IPv6, All for
// everything.
const (
	TCP  Protocol = "tcp"
	UDP  Protocol = "udp"
	ICMP Protocol = "icmp"
	All  Protocol = "all"
)

// Selector names safe traffic of this host: packets to its own addresses (not by way of the
// loopback interface) and the answers to them. It is comparable, so it serves as a map key.
//
//	{TCP, 80}                      tcp/80                       one listening service
//	{UDP, 53}                      udp/53
//	{UDP, 10000, Last: 20000}      udp/10000-20000              a range of ports
//	{TCP, 0}                       tcp                          all TCP of this host
//	{ICMP, 0}                      echo                         echo requests to this host and its replies
//	{TCP, 22, Remote: P}           tcp/22 with 198.51.100.0/24  one service and one remote prefix
//	{TCP, 80, Local: P}            tcp/80 at 203.0.113.0/28     one service on some of this host's addresses
//	{TCP, 80, Device: "eth0"}      tcp/80 on eth0               one service by way of one interface
//	{Group: true}                  multicast                    multicast and broadcast, both ways
//	{All, 0}                       all                          all to this host's own addresses and from them
//	{TCP, 80, Local: P, Inside: A, Uplink: "wan0"}
//	                               tcp/80 at 203.0.113.1/32 to 10.0.0.2:8080 by wan0
//	                                                            one service of an inside host, see [Selector.Forwarded]
//
// Without a port, questions can't be told from answers: the connections that this host opens itself
// are untracked too.
type Selector struct {
	Protocol Protocol
	Port     uint16       // this host's port, for TCP and UDP; 0 means every port
	Last     uint16       // the last port of a range that begins with Port; 0 means Port alone
	Remote   netip.Prefix // the other side; the zero Prefix means anywhere
	Local    netip.Prefix // this host's side; the zero Prefix means any own address
	Device   string       // the interface that requests come in by and answers go out by; empty means any but lo
	Group    bool         // multicast and broadcast destinations of any protocol; every other field is zero

	// Of a forwarded service: the inside host and its first port. Where that is Local and Port, it is merely routed.
	Inside netip.AddrPort
	Uplink string // the interface that answers of a forwarded service leave by
}

// Forwarded reports whether s is a service of an inside host: what comes for Local and Port is sent on to Inside, and
// the answers leave by way of Uplink with the address and port that were asked. Then Device is where requests have to
// come in, and empty means anywhere; only clients that are answered by way of Uplink are meant.
func (s Selector) Forwarded() bool { return s.Inside.IsValid() }

// Translated reports whether s is a forwarded service whose packets change their address or port on the way.
func (s Selector) Translated() bool {
	return s.Forwarded() && s.Inside != netip.AddrPortFrom(s.Local.Addr(), s.Port)
}

// Ports returns the first and the last of this host's ports that s is about.
func (s Selector) Ports() (first, last uint16) {
	switch {
	case s.Port == 0:
		return 0, 1<<16 - 1
	case s.Last == 0:
		return s.Port, s.Port
	}
	return s.Port, s.Last
}

// OfTCP reports whether s is about TCP connections, be it among others.
func (s Selector) OfTCP() bool { return s.Protocol == TCP || s.Protocol == All }

// connects reports whether TCP services live untracked where s is. One port and one remote side, as on
// the management lane, do not count: those few connections are given entries before the rules go.
func (s Selector) connects() bool {
	return s.OfTCP() && (!s.Remote.IsValid() || s.Port == 0 || s.Last != 0)
}

// Whole reports whether s is about every port of a protocol, and so about what this host itself asks
// for too.
func (s Selector) Whole() bool { return s.Port == 0 && s.Protocol != ICMP && !s.Group }

// PartlyCovers reports whether s has some of the packets of o and besides them other ports or protocols.
func (s Selector) PartlyCovers(o Selector) bool {
	if s.Protocol == All {
		return o != s
	}
	first, last := s.Ports()
	from, to := o.Ports()
	if s.Forwarded() != o.Forwarded() {
		return false
	}
	return s.Protocol == o.Protocol && (first < from || last > to) && first <= to && last >= from &&
		mayMeet(s.Remote, o.Remote) && mayMeet(s.Local, o.Local) &&
		(s.Device == "" || o.Device == "" || s.Device == o.Device)
}

// mayMeet reports whether an address may be in both prefixes, of which the zero one has every address.
func mayMeet(a, b netip.Prefix) bool { return !a.IsValid() || !b.IsValid() || a.Overlaps(b) }

// String returns the selector as configs and reports write it; [ParseSelector] reads it back.
func (s Selector) String() string {
	name := string(s.Protocol)
	switch {
	case s.Group:
		return "multicast"
	case s.Protocol == ICMP:
		name = "echo"
	case s.Last != 0:
		name += fmt.Sprintf("/%d-%d", s.Port, s.Last)
	case s.Port != 0:
		name += fmt.Sprintf("/%d", s.Port)
	}
	if s.Remote.IsValid() {
		name += " with " + s.Remote.String()
	}
	if s.Local.IsValid() {
		name += " at " + s.Local.String()
	}
	if s.Device != "" {
		name += " on " + s.Device
	}
	if s.Forwarded() {
		name += " to " + s.Inside.String() + " by " + s.Uplink
	}
	return name
}

// compareSelectors orders selectors for reports.
func compareSelectors(a, b Selector) int { return cmp.Compare(a.String(), b.String()) }

// ParseSelector reads what [Selector.String] writes, what follows the name in any order.
func ParseSelector(text string) (Selector, error) {
	words := strings.Fields(text)
	var s Selector
	if len(words)%2 == 0 || !s.name(words[0]) || len(words) > 1 && (s.Group || s.Protocol == All) {
		return Selector{}, wrongForm(text)
	}
	for i := 1; i < len(words); i += 2 {
		if err := s.restrict(text, words[i], words[i+1]); err != nil {
			return Selector{}, err
		}
	}
	if s.Remote.IsValid() && s.Local.IsValid() && s.Remote.Addr().Unmap().Is4() != s.Local.Addr().Unmap().Is4() {
		return Selector{}, fmt.Errorf("selector %q: %s and %s are not of one family", text, s.Remote, s.Local)
	}
	if err := s.wrongForward(text); err != nil {
		return Selector{}, err
	}
	return s, nil
}

// wrongForward says what a forwarded service lacks that every one has, or has too much.
func (s Selector) wrongForward(text string) error {
	inside := s.Inside
	switch {
	case !inside.IsValid() && s.Uplink == "":
		return nil
	case !inside.IsValid() || s.Uplink == "" || s.Port == 0 || !s.Local.IsSingleIP() || s.Local.Addr().Is4In6() ||
		inside.Addr().Is4() != s.Local.Addr().Is4():
		return fmt.Errorf(`selector %q: a service that is forwarded has one port or range, "at ONE-ADDRESS/32 `+
			`to INSIDE-ADDRESS:PORT by INTERFACE", both addresses of one family`, text)
	case s.Last != 0 && (inside.Port() != s.Port || s.Protocol != UDP):
		return fmt.Errorf("selector %q: a range of ports that is forwarded is of UDP and goes to the same ports", text)
	}
	return nil
}

func wrongForm(text string) error {
	return fmt.Errorf(`selector %q is none of "tcp", "tcp/PORT", "tcp/FIRST-LAST", the same of udp, "echo", `+
		`each of them also followed by "with REMOTE-PREFIX", "at OWN-PREFIX" or "on INTERFACE"; "multicast"; "all"`, text)
}

// name reads the first word of a selector and reports whether it is one.
func (s *Selector) name(word string) bool {
	protocol, ports, named := strings.Cut(word, "/")
	switch {
	case word == "multicast":
		s.Group = true
		return true
	case word == "echo":
		s.Protocol = ICMP
		return true
	case word == "all":
		s.Protocol = All
		return true
	case protocol != "tcp" && protocol != "udp":
		return false
	}
	s.Protocol = Protocol(protocol)
	if !named {
		return true
	}
	first, last, several := strings.Cut(ports, "-")
	s.Port = port(first)
	if several {
		s.Last = port(last)
	}
	return s.Port > 0 && (!several || s.Last > s.Port)
}

// port reads a port as String writes it; of anything else it returns 0.
func port(text string) uint16 {
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil || strconv.FormatUint(n, 10) != text {
		return 0
	}
	return uint16(n)
}

// restrict reads one of the pairs of words that follow the name.
func (s *Selector) restrict(text, word, value string) error {
	prefixes := map[string]*netip.Prefix{"with": &s.Remote, "at": &s.Local}
	switch to := prefixes[word]; {
	case to != nil && !to.IsValid():
		p, err := netip.ParsePrefix(value)
		if err != nil {
			return fmt.Errorf("selector %q: %w", text, err)
		}
		*to = p.Masked()
	case word == "on" && s.Device == "":
		if !isDevice(value) {
			return fmt.Errorf("selector %q: %q is not the name of an interface other than lo: up to 15 letters, digits and ._-",
				text, value)
		}
		s.Device = value
	case word == "by" && s.Uplink == "" && isDevice(value):
		s.Uplink = value
	case word == "to" && !s.Inside.IsValid():
		to, err := netip.ParseAddrPort(value)
		if err != nil || to.Port() == 0 || to.Addr().Is4In6() || to.Addr().Zone() != "" {
			return fmt.Errorf("selector %q: %q is not an address and a port", text, value)
		}
		s.Inside = to
	default:
		return wrongForm(text)
	}
	return nil
}

// isDevice reports whether name can be that of an interface (IFNAMSIZ is 16, with the zero at the
// end) and is made of what a rule's counter can be named after. Nothing is ever untracked on lo.
func isDevice(name string) bool {
	const letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-"
	return name != "" && len(name) < 16 && strings.Trim(name, letters) == "" && name != "lo"
}

// MarshalText writes the selector as [Selector.String] does.
func (s Selector) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText reads what MarshalText writes.
func (s *Selector) UnmarshalText(text []byte) error {
	parsed, err := ParseSelector(string(text))
	*s = parsed
	return err
}
