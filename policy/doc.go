// Package policy decides what ctguard does about a filling conntrack table.
//
// It is a pure machine: one [Observation] and the time it was made go in, one [Posture] and the
// events that explain it come out. It has no goroutine, no clock and no import that touches the
// system, so a recorded attack replays to the same decisions, and a dry run decides what a live
// run decides.
//
// The package also owns the vocabulary that the rest of ctguard shares: what was seen
// ([Observation], [Census], [Holding]), what is wanted ([Posture], [Selector], [Limit]) and what
// happened ([Event]). The packages that read and write the kernel import these types; this package
// imports none of them.
//
// What a caller can get wrong: observations must be handed over in order, each with the time at
// which its counters were read, and a [Posture] is the whole desired state, not a change to the
// one before.
package policy
