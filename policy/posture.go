package policy

import (
	"net/netip"
	"slices"
	"time"
)

// Posture is the whole state that ctguard wants the kernel to be in. The zero value wants nothing:
// no table, every setting as the administrator has it.
type Posture struct {
	Level       int
	DropInvalid bool           // drop ct state invalid after conntrack
	Settings    map[string]int // by name, as in [Host.Admin]; a name that is absent keeps the administrator's value
	Notrack     []Untracked
	Uncounted   bool // between looks: what becomes of Notrack's packets is not counted
	Limits      []Limit
	Caps        []Cap               // how many entries a source may keep; the excess is evicted
	Purges      []Purge             // classes whose entries are deleted, except those that are assured or have NAT
	LimitRate   int                 // new flows per second that a limited source may open
	LimitBurst  int                 // packets that it may open above the rate
	Synproxy    []Selector          // TCP services whose handshakes are answered with SYN cookies, see [Host.Listeners]
	InsideMSS   map[Selector]uint16 // of the forwarded ones among them: the MSS that their inside host announces, in bytes
	Learn       []Selector          // forwarded TCP services whose inside host's MSS is to be learnt
	Handshake   Handshake           // what synproxy says of this host
	LastCookies bool                // synproxy answers no more handshakes, and only takes cookies that are on their way
	ClosedPorts bool                // drop local TCP and UDP packets that no socket waits for
	ClosedRate  int                 // so many of them a second are let through
	Budgets     []Budget
	Reserve     Reserve        // what others may still open while the table is about to be full
	Allow       []netip.Prefix // never limited, evicted or refused: the allowlist and what an operator released
	Retire      Retirement     // finished entries that go
	Adopt       []Selector     // TCP services that lived untracked: their connections are given entries
	OneSided    bool           // TCP that nobody answers is conversations here: this host sees one direction of them
	Reject      bool           // answer dropped new flows of limited sources (TCP RST, ICMP), not drop in silence
}

// purge adds a class to those whose entries are deleted.
func (p *Posture) purge(one Purge) {
	if !slices.Contains(p.Purges, one) {
		p.Purges = append(p.Purges, one)
	}
}

// Purge is a class whose entries are deleted, but for those that are assured.
type Purge struct {
	Class FlowClass
	Local bool // only entries of what is this host's own, and nothing that is forwarded
	// instead or besides: what others asked each other by way of this host and was answered, untranslated and not by an
	// inside host; and what was translated to an inside host and answered
	Passing, Translated bool
	To                  netip.Addr // with Passing: only what this address was asked; the zero Addr means whoever
	Handshakes          bool       // only TCP handshakes under way
	// how long a question without an answer, a handshake under way and what is forwarded stay at least; at most it is
	// about twice as long
	Unfinished time.Duration
}

// HasRules reports whether p wants any rule in the kernel; without one there is no table.
func (p Posture) HasRules() bool {
	return p.DropInvalid || len(p.Notrack) > 0 || len(p.Limits) > 0 || len(p.Synproxy) > 0 || len(p.Learn) > 0 ||
		p.ClosedPorts || len(p.Budgets) > 0 || p.Reserve.Engaged
}

// Retirement says which finished entries go, whoever owns them; see agent/conntrack.
type Retirement struct {
	Silent time.Duration // after how long without a packet; 0: none go
	Ports  time.Duration // the same where the far end still remembers a source port that NAT chose
	Dead   bool          // also what this host asked for and nobody answers
	Most   int           // at one go, 0 for all: each costs those who open connections meanwhile a moment
}

// Budget is how many flows of a class may be opened; those that there are go on.
type Budget struct {
	Class FlowClass
	Rate  int // flows per second
}

// Untracked is one selector and how far its step has gone.
type Untracked struct {
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

// LimitKind is how a source is limited.
type LimitKind uint8

// The kinds of limit.
const (
	LimitNew LimitKind = iota // only new flows, above LimitRate; existing flows go on
	Block                     // every packet, before conntrack
)

// String returns the kind's name as the operator sees it.
func (k LimitKind) String() string { return [...]string{"limit", "block"}[k] }

// Limit is what one source is limited to until a time. The kernel forgets it at Until by itself.
type Limit struct {
	Prefix netip.Prefix
	Zone   uint16 `json:",omitempty"`
	Zoned  bool   `json:",omitempty"` // only what is in Zone; otherwise what is in any
	Kind   LimitKind
	Until  time.Time
	Reason string

	// ButTCP leaves TCP alone: what the source has too much of may come from anybody who writes its address into packets.
	ButTCP bool `json:",omitempty"`

	// Of an inside host:
	Flows []FlowClass  // only new flows of these classes are limited; empty means of all
	Peers []netip.Addr // whoever has answered it: new flows to them are not limited
}

// Source returns who is limited.
func (l Limit) Source() Source { return Source{l.Prefix, l.Zone} }

// String says in a word or two what is limited.
func (l Limit) String() string {
	text := l.Kind.String()
	if l.ButTCP {
		text += " all but tcp"
	}
	for i, class := range l.Flows {
		if text += " "; i > 0 {
			text += "and "
		}
		text += class.String()
	}
	return text
}

// Cap is how many entries a source may keep.
type Cap struct {
	Prefix       netip.Prefix
	Zone         uint16 `json:",omitempty"`
	Keep         int
	SpareAssured bool // evict none of its assured entries, whatever the excess
	SpareForward bool // evict none of its assured entries that this host forwards, but
	TakeInward   bool // of those may go what leads to inside hosts
	SpareRecent  bool // evict none of its assured entries that a packet passed in the last minute
	ClosingFirst bool // take closing entries before handshakes under way: its excess is not its fault
}

// Source returns whose entries they are.
func (c Cap) Source() Source { return Source{c.Prefix, c.Zone} }
