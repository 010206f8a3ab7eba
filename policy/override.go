package policy

import (
	"fmt"
	"net/netip"
	"time"
)

// OverrideKind is what an operator's override does to the level.
type OverrideKind string

// The kinds of override.
const (
	Pin    OverrideKind = "pin"    // the level is exactly Level
	AtMost OverrideKind = "cap"    // the level is at most Level
	Freeze OverrideKind = "freeze" // the level stays where it is
)

// Override is an operator's word on the level. It always has an end and a reason.
type Override struct {
	Kind   OverrideKind `json:"kind"`
	Level  int          `json:"level"`
	Until  time.Time    `json:"until"`
	Reason string       `json:"reason"`
}

// apply returns the level that the override makes of the one that pressure asks for.
func (ov *Override) apply(wanted, current int) int {
	if ov == nil {
		return wanted
	}
	switch ov.Kind {
	case Pin:
		return ov.Level
	case AtMost:
		return min(wanted, ov.Level)
	case Freeze:
		return current
	}
	return wanted
}

// String says what the override does, in the operator's words.
func (ov *Override) String() string {
	if ov.Kind == Freeze {
		return "freeze: " + ov.Reason
	}
	return fmt.Sprintf("%s %d: %s", ov.Kind, ov.Level, ov.Reason)
}

// Manual is an operator's word on one prefix: hold it back, or leave it alone, until a time.
type Manual struct {
	Prefix  netip.Prefix `json:"prefix"`
	Release bool         `json:"release"` // leave it alone; otherwise hold it back
	Until   time.Time    `json:"until"`
	Reason  string       `json:"reason"`
}
