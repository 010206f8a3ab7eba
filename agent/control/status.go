package control

import (
	"net/netip"
	"time"

	"ctguard/policy"
)

// Status is what `ctguard status --json` prints. Field names are stable.
type Status struct {
	Mode          string                  `json:"mode"` // "auto", "hold" or "dry-run"
	Version       string                  `json:"version"`
	Profile       policy.Profile          `json:"profile"`
	Inside        []netip.Prefix          `json:"inside"` // networks that this host forwards for
	Level         int                     `json:"level"`
	TopStep       policy.StepName         `json:"top_step"` // the step that the level is named by; empty at level 0
	Fill          float64                 `json:"fill_percent"`
	Pressure      float64                 `json:"pressure_percent"`
	Count         int                     `json:"count"`
	Capacity      int                     `json:"capacity"`
	Rate          float64                 `json:"rate_per_second"`
	SecondsToFull *float64                `json:"seconds_to_full"` // null while the table is not filling
	KernelDrops   uint64                  `json:"kernel_drops"`    // new flows the kernel refused since boot
	Steps         []policy.StepStatus     `json:"steps"`
	Selectors     []policy.SelectorStatus `json:"selectors"` // candidates for notrack
	Limited       []LimitedStatus         `json:"limited"`
	Ordinary      policy.DayStatus        `json:"ordinary"` // what was learnt in calm
	Holders       *HoldersStatus          `json:"holders"`  // who holds the table; null before the first census
	Allow         []netip.Prefix          `json:"allow"`
	Override      *policy.Override        `json:"override"`
	Words         []policy.Word           `json:"words"`    // what the operator said of single prefixes
	Degraded      []string                `json:"degraded"` // what ctguard cannot do now, and why
	Missing       []string                `json:"missing"`  // what this kernel lacks, and what happens instead
	Slower        []string                `json:"slower"`   // what it lacks and is done in another way, as well
	Evicted       uint64                  `json:"evicted_entries"`
	Events        []NumberedEvent         `json:"events"` // the last 20
	Time          time.Time               `json:"time"`
	TickSeconds   float64                 `json:"tick_seconds"` // how long the last tick took
	// the longest so far from an observation to its rules in the kernel
	RulesSeconds float64 `json:"rules_seconds"`
}

// LimitedStatus is one source that is limited.
type LimitedStatus struct {
	Prefix  netip.Prefix `json:"prefix"`
	Zone    uint16       `json:"zone,omitempty"` // conntrack zone; absent in the default one
	Kind    string       `json:"kind"`           // "limit" or "block"
	Entries int          `json:"entries"`        // what it held when the last scan saw it
	Until   time.Time    `json:"until"`
	Reason  string       `json:"reason"`
	// TCP of its is not limited: what it has too much of may come from anybody who writes its address into packets
	ButTCP bool `json:"but_tcp,omitempty"`
	// the classes of flows that are limited, such as "udp/161"; empty means all
	Flows []string `json:"flows"`
	// who has answered it, and goes free
	Peers int `json:"peers"`
}

// HoldersStatus is who holds the table, as the newest census found it; numbers of entries are estimates for the
// whole table where it saw a part.
type HoldersStatus struct {
	Time      time.Time      `json:"time"`
	Sampled   bool           `json:"sampled"` // it saw a part of the table
	Distinct  int            `json:"distinct_sources"`
	States    map[string]int `json:"states"`    // entries by state
	Protocols map[string]int `json:"protocols"` // entries by protocol
	// percent of the entries by role: local, own, outward, inward, through
	Roles   map[string]float64 `json:"roles"`
	Sources []HolderStatus     `json:"sources"` // the largest, at most [MostHolders]
}

// MostHolders is how many of the largest sources the status names.
const MostHolders = 20

// HolderStatus is one of the largest sources.
type HolderStatus struct {
	Prefix  netip.Prefix `json:"prefix"`
	Zone    uint16       `json:"zone,omitempty"` // conntrack zone; absent in the default one
	Entries int          `json:"entries"`
	Usual   int          `json:"usual_entries"` // what it holds on an ordinary day; 0 for a newcomer
	Inside  bool         `json:"inside"`        // this host forwards for it
}

// Source returns who is limited.
func (l LimitedStatus) Source() policy.Source { return policy.Source{Prefix: l.Prefix, Zone: l.Zone} }

// Source returns whose entries they are.
func (h HolderStatus) Source() policy.Source { return policy.Source{Prefix: h.Prefix, Zone: h.Zone} }
