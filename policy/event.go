package policy

import (
	"net/netip"
	"time"
)

// EventKind says what an event is about.
type EventKind string

// The kinds of event.
const (
	LevelEvent    EventKind = "level"    // the level changed
	StepEvent     EventKind = "step"     // a step's selector or setting changed, or what a step brought
	LimitEvent    EventKind = "limit"    // a source was limited, blocked or released
	EvictEvent    EventKind = "evict"    // entries were deleted
	OverrideEvent EventKind = "override" // an operator pinned the level or gave it back
	RepairEvent   EventKind = "repair"   // something that went missing was put back
	ConfigEvent   EventKind = "config"   // the configuration was read again
	DegradedEvent EventKind = "degraded" // ctguard does less than it should, and why
)

// Event is one change, with the reason and the numbers it was decided on.
type Event struct {
	Time          time.Time    `json:"time"`
	Kind          EventKind    `json:"event"`
	Reason        string       `json:"reason"`
	Step          StepName     `json:"step,omitempty"`
	From          *int         `json:"from,omitempty"` // levels, for a level event
	To            *int         `json:"to,omitempty"`
	Prefix        netip.Prefix `json:"prefix,omitzero"`
	Zone          uint16       `json:"zone,omitempty"`    // the conntrack zone that the prefix is in
	Entries       int          `json:"entries,omitempty"` // entries that were deleted or that a source held
	Fill          float64      `json:"fill_percent"`
	Pressure      float64      `json:"pressure_percent"`
	Rate          float64      `json:"rate_per_second"`
	SecondsToFull *float64     `json:"seconds_to_full"` // null when the table is not filling
	DryRun        bool         `json:"dry_run,omitempty"`
}

// Source returns who the event is about; its prefix is valid only where it is about one.
func (e Event) Source() Source { return Source{e.Prefix, e.Zone} }
