// Package record writes what an agent saw and decided to a file, and decides again on it: a replay with the
// recording's own configuration comes to the same decisions, one with another shows what that would have done.
//
// What a caller can get wrong: the file must not exist before, holds addresses of real clients, and stops at
// a bound of 100 MiB, which [ErrFull] says at each tick from then on. The decisions of a replay are those of
// today's code, not of the one that recorded.
package record
