package policy

import (
	"fmt"
	"net/netip"
	"slices"
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

// Word is an operator's word on one prefix: limit it, or leave it alone, until a time.
type Word struct {
	Prefix  netip.Prefix `json:"prefix"`
	Release bool         `json:"release"` // leave it alone; otherwise limit it
	Until   time.Time    `json:"until"`
	Reason  string       `json:"reason"`
}

// operator is what operators said and that is still in force.
type operator struct {
	override *Override
	words    []Word
}

// pinned reports whether an operator's word decides the level: it counts like a flood.
func (op *operator) pinned() bool { return op.override != nil && op.override.Kind == Pin }

// say takes a word on one prefix; a later word on the same prefix replaces it.
func (op *operator) say(word Word) {
	op.words = slices.DeleteFunc(op.words, func(o Word) bool { return o.Prefix == word.Prefix })
	op.words = append(op.words, word)
}

// expire ends overrides and words whose time has come.
func (op *operator) expire(now time.Time) []Event {
	op.words = slices.DeleteFunc(op.words, func(w Word) bool { return !now.Before(w.Until) })
	if op.override == nil || now.Before(op.override.Until) {
		return nil
	}
	ended := Event{Kind: OverrideEvent, Reason: fmt.Sprintf("%s: its time is over", op.override)}
	op.override = nil
	return []Event{ended}
}

// released returns the prefixes that are to be left alone.
func (op *operator) released() []netip.Prefix {
	var list []netip.Prefix
	for _, w := range op.words {
		if w.Release {
			list = append(list, w.Prefix)
		}
	}
	return list
}

// limits returns a list of limits with the operator's own put in.
func (op *operator) limits(limits []Limit) []Limit {
	for _, w := range op.words {
		if !w.Release {
			limits = slices.DeleteFunc(limits, func(l Limit) bool {
				return l.Prefix == w.Prefix || l.Kind == LimitNew && w.Prefix.Bits() <= l.Prefix.Bits() &&
					w.Prefix.Contains(l.Prefix.Addr()) // which may let some of it pass
			})
			limits = append(limits, Limit{Prefix: w.Prefix, Kind: LimitNew, Until: w.Until,
				Reason: "by the operator: " + w.Reason})
		}
	}
	return limits
}
