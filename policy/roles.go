package policy

import (
	"cmp"
	"net/netip"
	"slices"
)

// Role is what this host has to do with an entry. It is told entry by entry, from the addresses: a host may serve, and
// masquerade for containers, and ask questions of its own.
type Role uint8

// The roles.
const (
	Local   Role = iota // to an address of this host, and not sent elsewhere
	Own                 // from an address of this host
	Outward             // forwarded, from an inside host
	Inward              // forwarded, to an inside host
	Through             // forwarded, and nobody knows which side is inside
	NumRoles
)

// String returns the role's name as the operator sees it.
func (r Role) String() string { return [...]string{"local", "own", "outward", "inward", "through"}[r] }

// Forwarded reports whether an entry of that role is somebody else's conversation.
func (r Role) Forwarded() bool { return r >= Outward }

// FlowCount is how many entries of one class a source has.
type FlowCount struct {
	FlowClass
	Entries  int
	Answered int // of them, those that saw an answer and finished a handshake
}

// Look is a closer look at an inside host: at those of its entries that are among the first of a scan.
type Look struct {
	Entries   int
	Answered  int          // of them
	Forwarded int          // of them: the others are to this host itself
	Flows     []FlowCount  // its largest classes, the largest first, bounded
	Closer    bool         `json:",omitempty"` // it was looked for who answered
	Peers     []netip.Addr `json:",omitempty"` // they, bounded
}

// everywhere is what is inside of a gateway by configuration: whom it takes for inside depends on the side that a
// packet comes from, which no entry tells.
func (c Config) everywhere() bool { return c.Profile == NATGateway }

// forwards reports whether this host forwards for others.
func (s situation) forwards() bool {
	return s.cfg.everywhere() || s.cfg.Profile == Auto && len(s.Inside) > 0
}

// inside reports whether a source is an inside host, or a network of them.
func (s situation) inside(source netip.Prefix) bool {
	return s.cfg.everywhere() || s.cfg.Profile == Auto && s.IsInside(source)
}

// IsInside reports whether all of a prefix is inside.
func (h Host) IsInside(p netip.Prefix) bool {
	return slices.ContainsFunc(h.Inside, func(in netip.Prefix) bool {
		return in.Bits() <= p.Bits() && in.Contains(p.Addr())
	})
}

// forwarded reports whether most of what a source has is forwarded for it. Of what comes to this host itself somebody
// else may be the sender, such as a load balancer's clients.
func (a *usage) forwarded() bool {
	return a.Look != nil && 2*a.Look.Forwarded > a.Look.Entries
}

// How the classes are found to which an inside host is limited.
const (
	mostFlows    = 4    // classes of one source that are limited one by one
	narrowPart   = 0.1  // part of its excess that a class must make up
	narrowEnough = 0.75 // part of it that they must make up together: else all classes are limited
)

// narrow returns the classes in which an inside host opens too much, so that what it does besides goes on; nil where
// it is everywhere, or nobody knows.
func (a *usage) narrow() []FlowClass {
	if a.Look == nil || a.Look.Entries == 0 {
		return nil
	}
	all, weight := a.Look.Entries, func(f FlowCount) int { return f.Entries }
	if a.scans() {
		all, weight = all-a.Look.Answered, func(f FlowCount) int { return f.Entries - f.Answered }
	}
	var list []FlowClass
	sum := 0
	for _, f := range a.Look.Flows {
		if n := weight(f); float64(n) >= narrowPart*float64(all) && f.limitable() {
			list, sum = append(list, f.FlowClass), sum+n
		}
	}
	if len(list) > mostFlows || float64(sum) < narrowEnough*float64(all) {
		return nil
	}
	slices.SortFunc(list, FlowClass.compare)
	return list
}

// scans reports whether next to nothing of what a source opens is answered.
func (a *usage) scans() bool { return a.answered() < ownAddress }

// known reports whether a source that scans can be limited in that alone: it is known who answers it, or nobody does in
// the classes that it scans.
func (a *usage) known() bool {
	if a.Look == nil || a.Look.Closer {
		return a.Look != nil
	}
	list := a.narrow()
	return list != nil && !slices.ContainsFunc(a.Look.Flows, func(f FlowCount) bool {
		return f.Answered > 0 && slices.Contains(list, f.FlowClass)
	})
}

// limitable reports whether a packet tells that it is of the class: by its port, or as an echo request.
func (c FlowClass) limitable() bool {
	return slices.Contains([]uint8{icmp, tcp, udp, icmpv6}, c.Protocol)
}

// Suspects returns the inside hosts that the next census should look closer at: those that are limited, and of this one
// the largest with many entries that nobody answers. Who answers them nevertheless shall go free.
func (c *Census) Suspects(h Host, limits []Limit) []Source {
	const most, least, part = 32, 32, 0.5
	var list []Holding
	for _, a := range c.Sources {
		open := a.Classes[Unreplied] + a.Classes[HalfOpen]
		if a.Look != nil && open >= least && float64(open) > part*float64(a.Entries) && h.IsInside(a.Prefix) {
			list = append(list, a)
		}
	}
	slices.SortStableFunc(list, func(a, b Holding) int { return cmp.Compare(b.Entries, a.Entries) })
	var sources []Source
	for _, l := range limits {
		if l.Prefix.IsSingleIP() && h.IsInside(l.Prefix) && len(sources) < most {
			sources = append(sources, l.Source())
		}
	}
	for _, a := range list[:min(most, len(list))] {
		sources = append(sources, a.Source())
	}
	return sources
}
