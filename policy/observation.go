package policy

import (
	"net/netip"
	"time"
)

// Observation is what one tick saw. Counters are cumulative since boot (or since the namespace was
// made); the machine takes differences, and a counter that jumps back counts as standing still.
type Observation struct {
	Time     time.Time // when the counters were read
	Count    int       // entries in the table, expired ones that are not yet collected included
	Capacity int       // entries this namespace may use
	Kernel   KernelCounters
	Arrivals Arrivals  // what reached this host's sockets and stack, tracked or not
	Sockets  int       // TCP sockets in use in this namespace, listening ones included
	Work     Work      // what ctguard itself did; zero while it did nothing
	Foreign  uint64    // how often somebody else was seen to change the host's rules
	Adopted  time.Time // when the newest adoption that has ended began; see [Posture.Adopt]
	Census   *Census   // the newest scan if one ended since the last tick, else nil

	Host `json:"-"`
}

// Host is what is known of the host that an observation was made on; it rarely changes.
type Host struct {
	Admin       map[string]int      // settings as the administrator has them, by name without net.netfilter. or net.ipv4.
	Allow       []netip.Prefix      // the allowlist: configured and learnt
	Inside      []netip.Prefix      // networks that this host forwards for, as far as it is not told by the profile
	Zones       bool                // rules of this host put traffic into conntrack zones
	Services    []Selector          // safe traffic found on this host or named in the config: candidates for notrack
	Lane        []Selector          // management ports with allowlisted sources: untracked when the table is nearly full
	Refused     map[Selector]string // candidates that must stay tracked, and why
	Unsupported map[StepName]string // steps that can't do their work on this host or kernel, and why
	MaxEntries  int                 // entries that the memory budget has room for; 0 where the capacity can't be raised
	Listeners   []Selector          // TCP services that may be put behind synproxy: {TCP, Port}, and forwarded ones
	Unproxied   map[Selector]string // those of them that can't, and why
	BySYN       string              // rules that let a connection in by its SYN alone, not in its middle; empty for none
	Handshake   Handshake           // what this host says of itself when it accepts a connection
}

// KernelCounters are the conntrack statistics that say whether entries are being refused, summed
// over all CPUs; see struct ip_conntrack_stat in include/linux/netfilter/nf_conntrack_common.h.
type KernelCounters struct {
	Drop         uint64 // new flows dropped because the table was full and early drop found no victim
	InsertFailed uint64 // entries that could not be inserted
	Invalid      uint64 // packets that could not be tracked
}

// refused returns how many new flows the kernel refused for want of room. A race between packets of one flow, as
// between two questions of a resolver, counts in both (nf_ct_resolve_clash in net/netfilter/nf_conntrack_core.c); what
// was lost to a full table counts as dropped alone.
func (k KernelCounters) refused() uint64 { return k.Drop - min(k.Drop, k.InsertFailed) }

// Handshake is what this host's TCP says of itself in the SYN-ACK of a connection: what synproxy, which
// answers in its place, must say too.
type Handshake struct {
	MSS4, MSS6  uint16 // over IPv4 and over IPv6, in bytes
	WindowScale uint8
	SACK        bool
	Timestamps  bool
}

// Arrivals counts new work as the protocol stack itself sees it, from /proc/net/snmp and snmp6. It
// moves whether or not packets are tracked, so it tells an ordinary day from an attack at level 0,
// where ctguard has no rules that could count.
type Arrivals struct {
	TCPOpens     uint64 // Tcp PassiveOpens: connections accepted
	UDPDatagrams uint64 // Udp InDatagrams, NoPorts and InErrors
	Echoes       uint64 // Icmp InEchos
}

// Work is what ctguard did since it started: packets its rules counted, entries it deleted.
type Work struct {
	Evicted        uint64 // entries deleted, for whatever reason
	Retimed        uint64 // entries whose timeout was shortened
	Retired        uint64 // of those deleted, entries that were finished
	InvalidDropped uint64
	Strays         []Stray `json:",omitempty"` // what of that were connections that live
	LimitedDropped uint64  // new flows of limited sources above their rate
	BlockedDropped uint64  // packets of blocked sources
	ClosedDropped  uint64  // packets for this host that no socket waited for
	BudgetDropped  uint64  // packets of a flood's class above its budget
	ReserveDropped uint64  // new flows refused for [Reserve]
	Proxied        Proxied
	InsideMSS      map[Selector]uint16       `json:",omitempty"` // the smallest announced lately, in bytes
	FreedOpened    uint64                    // flows that untracked services opened between looks
	Selectors      map[Selector]SelectorWork // by selector, watched ones included
}

// Stray is a TCP connection that goes on and that conntrack can't place: packets in its middle are INVALID, one after
// the other, as the sender repeats what nobody acknowledges.
type Stray struct {
	Source      netip.Addr `json:"src"`
	Destination netip.Addr `json:"dst"`
}

// Proxied is what synproxy did.
type Proxied struct {
	SYNs     uint64 // answered in a service's place
	Returned uint64 // packets that may bring a cookie back, before any rule of this host that knows conntrack
	Checked  uint64 // of them, those that got to where cookies are checked
	Services map[Selector]ProxiedService
}

// ProxiedService is what synproxy did for one service.
type ProxiedService struct {
	Completed uint64 // connections opened for a good cookie
	Delivered uint64 // of them, those that the host's own rules let through to the listener, or an inside host accepted
}

// Completed returns how many connections were opened for a good cookie, to any service.
func (p Proxied) Completed() uint64 {
	var n uint64
	for _, s := range p.Services {
		n += s.Completed
	}
	return n
}

// SelectorWork follows one selector's packets through the host's own rules. Delivered against
// Requests, and Sent against Replies, tell whether those rules let the traffic through.
type SelectorWork struct {
	Requests  uint64 // packets that arrived for the selector, before any other rule
	New       uint64 // of them, those that would open a flow: TCP SYN without ACK, every UDP datagram or echo request
	Delivered uint64 // packets that also passed the host's input rules
	Replies   uint64 // packets this host answered, before any other rule
	Sent      uint64 // of them, those that passed the host's output rules
	Asked     uint64 // packets that arrived between looks, when nothing else is counted; of freed services none

	// Of selectors without a port: the answers to what this host asks itself, as far as they are told
	// from everything else, and those of them that passed the host's input rules.
	Answers, Heard uint64

	// Of forwarded services: packets that came to the inside host's port by another address than the service's; ICMP
	// errors that tell the inside host to send smaller packets, and those of them that passed the host's forward rules.
	Besides, Errors, ErrorsPassed uint64
}

// Class groups entries by how much they are worth, in the order in which eviction takes them.
type Class uint8

// The classes, cheapest first.
const (
	Unreplied Class = iota // no packet came back (IPS_SEEN_REPLY is not set)
	HalfOpen               // TCP SYN_RECV: answered, the handshake not finished
	Closing                // TCP past its first FIN or RST: FIN_WAIT, CLOSE_WAIT, LAST_ACK, TIME_WAIT, CLOSE
	Replied                // two-way, not assured
	Assured                // two-way and busy: early drop never takes it (IPS_ASSURED)
	NumClasses
)

// String returns the class's name as the operator sees it.
func (c Class) String() string {
	return [...]string{"unreplied", "half-open", "closing", "replied", "assured"}[c]
}

// Holding is what one source holds of the entries a scan saw.
type Holding struct {
	Prefix  netip.Prefix // the source, folded to the configured prefix length
	Zone    uint16       `json:",omitempty"`
	Entries int
	Classes [NumClasses]int
	Proven  int   `json:",omitempty"` // of the assured ones, those of TCP: a handshake says whose the address is
	Look    *Look `json:",omitempty"` // of inside hosts
}

// Source returns whose entries they are.
func (h Holding) Source() Source { return Source{h.Prefix, h.Zone} }

// PortCount is how many entries of a scan go to one destination port of one protocol.
type PortCount struct {
	Protocol uint8 // IP protocol number
	Port     uint16
	Entries  int
	Replied  int // of them, those that have seen a reply
}

// Census is the result of one scan of the table. A whole census saw every entry; a sample saw the
// first Seen entries of a dump, which the hash's random key makes a uniform random sample.
// Counts in it are counts of entries seen: scale by Total/Seen to estimate the table.
type Census struct {
	Time             time.Time // when the scan ended
	Took             time.Duration
	Total            int  // entries in the table when the scan began
	Seen             int  // entries this scan saw
	Whole            bool // the dump ran to its end
	Zoned            int  `json:",omitempty"` // entries in other zones than the default one
	Classes          [NumClasses]int
	Roles            [NumRoles]int // of the first entries; all zero where nobody looked
	Looks            []ClassLook   `json:",omitempty"` // of the first entries: the largest classes, bounded
	Protocols        map[uint8]int // by IP protocol number
	ProtocolsReplied map[uint8]int // of them, those that have seen a reply
	TCPStates        map[uint8]int // TCP entries by enum tcp_conntrack (include/uapi/linux/netfilter/nf_conntrack_tcp.h)
	Ports            []PortCount   // the most frequent destination ports, largest first, bounded
	Sources          []Holding     // the largest sources, largest first, bounded
	Distinct         int           // how many sources were told apart; at least len(Sources)
	Rest             Holding       // the entries of all sources not listed, without a prefix
	OneWay           []OneWayFlow  // TCP picked up in the middle that never saw an answer, bounded
	// the longest silences, in seconds by sysctl name of the timeout, after which conversations went on since the last
	// scan that looked for them; see [WatchedFloors]
	Silences map[string]int
	// what became of the conversations that evictions took in the last minutes, one a source, in the order of the
	// sources; bounded
	Comebacks []Comeback `json:",omitempty"`
}

// ClassLook is a closer look at a class of TCP or UDP.
type ClassLook struct {
	FlowClass
	Entries int // those that are not assured
	Local   int // of them: to this host itself, untranslated
	// of them, as far as they were answered, and of TCP handshakes under way: what this host only passes on, untranslated
	// and not for an inside host; and what it translates to an inside host
	Passing, Translated int
	// whom half of what passes ask, or more; the zero Addr where nobody is found
	To netip.Addr
}

// OneWayFlow is a TCP entry beyond its handshake without an answer. It may be a stray packet's, which is
// never renewed, or a connection of which this host sees one direction only (an asymmetric route, direct
// server return): that one is renewed by each of its packets, and two censuses tell the difference.
type OneWayFlow struct {
	ID   uint32 // the kernel's id of the entry (CTA_ID), the same as long as the entry lives
	Left uint32 // seconds until it expires
}
