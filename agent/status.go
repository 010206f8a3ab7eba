package agent

import (
	"net/netip"
	"slices"
	"time"

	"ctguard/policy"
)

// Status is what `ctguard status --json` prints. Field names are stable.
type Status struct {
	Mode          string                  `json:"mode"` // "auto", "hold" or "dry-run"
	Version       string                  `json:"version"`
	Profile       policy.Profile          `json:"profile"`
	Level         int                     `json:"level"`
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
	Allow         []netip.Prefix          `json:"allow"`
	Override      *policy.Override        `json:"override"`
	Manual        []policy.Manual         `json:"manual"`   // what the operator said of single prefixes
	Degraded      []string                `json:"degraded"` // what ctguard cannot do now, and why
	Missing       []string                `json:"missing"`  // what this kernel lacks, and what happens instead
	Evicted       uint64                  `json:"evicted_entries"`
	Events        []NumberedEvent         `json:"events"` // the last 20
	Time          time.Time               `json:"time"`
	TickSeconds   float64                 `json:"tick_seconds"`  // how long the last tick took
	RulesSeconds  float64                 `json:"rules_seconds"` // the longest so far from an observation to its rules in the kernel
}

// LimitedStatus is one source that is held back.
type LimitedStatus struct {
	Prefix  netip.Prefix `json:"prefix"`
	Kind    string       `json:"kind"`    // "limit" or "block"
	Entries int          `json:"entries"` // what it held when the last scan saw it
	Until   time.Time    `json:"until"`
	Reason  string       `json:"reason"`
}

// Version is ctguard's version; the build sets it.
var Version = "dev"

// publish makes the state after a tick visible to the control socket and the metrics.
func (a *Agent) publish(o policy.Observation, took time.Duration) {
	d := a.decision
	s := &Status{
		Mode: a.mode(), Version: Version, Profile: a.config.Policy.Profile,
		Level: d.Posture.Level, Fill: round(d.Fill), Pressure: round(d.Pressure),
		Count: o.Count, Capacity: o.Capacity, Rate: round(d.Rate), KernelDrops: o.Kernel.Drop + o.Kernel.InsertFailed,
		Steps: a.machine.Steps(), Selectors: a.machine.Selectors(), Limited: a.limited(), Allow: a.facts.Allow,
		Override: a.machine.Override(), Manual: append([]policy.Manual{}, a.machine.Manual()...), Degraded: []string{}, Missing: append([]string{}, a.missing...), Evicted: o.Work.Evicted,
		Events: a.events.since(0, 20), Time: o.Time, TickSeconds: took.Seconds(), RulesSeconds: a.slowest.Seconds(),
	}
	if d.SecondsToFull != nil {
		full := round(*d.SecondsToFull)
		s.SecondsToFull = &full
	}
	for part, text := range a.troubles {
		s.Degraded = append(s.Degraded, part+": "+text)
	}
	slices.Sort(s.Degraded)
	a.status.Store(s)
	a.metrics.update(s, o)
}

// mode says who decides: ctguard, an operator, or nobody.
func (a *Agent) mode() string {
	switch {
	case a.dryRun:
		return "dry-run"
	case a.machine.Override() != nil:
		return "hold"
	}
	return "auto"
}

// limited returns the sources that are held back, with what they held in the last census.
func (a *Agent) limited() []LimitedStatus {
	held := make(map[netip.Prefix]int)
	if len(a.decision.Posture.Limits) > 0 && a.census != nil {
		for _, s := range a.census.Sources {
			held[s.Prefix], _, _ = a.census.Estimate(s.Entries)
		}
	}
	list := make([]LimitedStatus, 0, len(a.decision.Posture.Limits))
	for _, l := range a.decision.Posture.Limits {
		list = append(list, LimitedStatus{l.Prefix, l.Kind.String(), held[l.Prefix], l.Until, l.Reason})
	}
	return list
}
