package audit

import (
	"net/netip"
	"time"

	"github.com/prometheus/procfs"

	"ctguard/agent/survey"
	"ctguard/policy"
)

// Facts is what is known of a host, as far as its conntrack table goes.
type Facts struct {
	Unread       []string       // what could not be read, and why
	NoRules      bool           // the rules of nftables are part of it
	NoTable      bool           // the entries are
	Loaded       bool           // this namespace has connection tracking
	Shared       bool           // limit and buckets can't be changed from here: not the initial namespace
	Settings     map[string]int // by name without net.netfilter.
	Count        int            // entries before anything was listed
	Left         int            // the count after that
	Memory       survey.Memory
	Elsewhere    int                         // entries of other namespaces, asked for where there are none here
	CPUs         []procfs.ConntrackStatEntry // counters of each CPU
	Later        []procfs.ConntrackStatEntry // the same after Waited; nil if nobody waited
	Waited       time.Duration               // between the two
	Table        Table                       // what the entries say
	OneWay       int                         // TCP flows seen one way that a packet renewed while waiting
	Daemon       *Daemon                     // nil where none answers
	Services     []policy.Selector           // what this host serves
	Forwarded    []policy.Selector           // services of inside hosts
	Pinned       map[policy.Selector]string  // of them, what must stay tracked, and why
	Files        []Assignment                // settings for the next boot, in the order in which they are applied
	Module       Module                      // where the code of conntrack is
	Helpers      []string                    // helper modules that somebody loaded
	Rules        Rules                       // of nftables, iptables-nft's included
	Legacy       []string                    // tables of iptables-legacy that have rules
	LegacyChains []string                    // chains of theirs that somebody made
	Saved        []SavedTable                // ctguard's table in files that are loaded at boot
}

// Table is what a pass over the entries counted.
type Table struct {
	Listed     int  // entries seen
	Whole      bool // all of them
	Idle       int  // established and assured TCP, silent for [idleFor] or longer
	Older      int  // likewise, but with more time left than the timeout in force gives
	HalfOpen   int  // TCP before the end of its handshake
	Unreplied  int
	Loopback   int          // from and to loopback addresses
	Own        int          // from and to this host's own addresses, loopback's apart
	Group      int          // multicast and broadcast
	Segments   int          // between networks that this host forwards for
	Translated int          // NAT
	Helped     int          // followed by a helper
	Helps      map[Port]int // of those, by destination port
	Local      map[Port]int // to this host's own addresses, by destination port
	Forwarded  map[policy.Selector]int
	Overlays   map[string]int // tunnels, by their names
	IdleTop    []Holder       // who holds the idle ones
	Inside     []Holder       // sources whose address is translated
	Ports      []PortUse      // source ports that NAT uses up, the most used first
}

// Port is a destination port.
type Port struct {
	Protocol uint8
	Port     uint16
}

// Holder is an address and how many entries it has.
type Holder struct {
	Addr    netip.Addr
	Entries int
}

// PortUse is how many source ports of a public address are in use towards a destination.
type PortUse struct {
	Protocol    uint8
	Public      netip.Addr
	Destination netip.AddrPort
	Entries     int
}

// Daemon is what a ctguard that runs here says.
type Daemon struct {
	Level int
	Peak  int // the most entries of its history
	// how far back that goes
	Watched time.Duration
	Waits   string // why it knows no ordinary day; empty where it does or soon will
}

// Assignment is one line of a sysctl file.
type Assignment struct {
	File  string
	Line  int
	Key   string // as it is written
	Name  string // as this kernel calls it, without net.netfilter.; empty where it has no such setting
	Value int
}

// Module is where the code of conntrack is.
type Module struct {
	Loadable bool // not built into the kernel
	AtBoot   bool // named in modules-load.d
}

// Rules is what nftables has.
type Rules struct {
	Tables      []string // those with rules, as "family name", ctguard's own left out
	Chains      []string // every chain's name
	Sets        []string // every named set's name
	Inside      []netip.Prefix
	NAT         []string // chains of type nat that have rules
	Notrack     []string // chains with a rule that leaves something untracked
	DropInvalid []string // chains with a rule that drops INVALID
	Helpers     []string // chains with a rule that gives flows a helper
	Cut         bool     // there are more chains than were read
}

// SavedTable is ctguard's table in a file.
type SavedTable struct {
	File        string
	First, Last int // lines
}

// moved returns how much a counter of all CPUs grew while waiting.
func (f *Facts) moved(counter func(procfs.ConntrackStatEntry) uint64) uint64 {
	if f.Later == nil {
		return 0
	}
	return total(f.Later, counter) - min(total(f.CPUs, counter), total(f.Later, counter))
}

// total sums a counter over all CPUs.
func total(cpus []procfs.ConntrackStatEntry, counter func(procfs.ConntrackStatEntry) uint64) (sum uint64) {
	for _, c := range cpus {
		sum += counter(c)
	}
	return sum
}

// limit returns nf_conntrack_max; 0 means that there is none.
func (f *Facts) limit() int { return f.Settings["nf_conntrack_max"] }

// buckets returns the size of the hash table.
func (f *Facts) buckets() int { return f.Settings["nf_conntrack_buckets"] }
