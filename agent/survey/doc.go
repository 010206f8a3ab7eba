// Package survey finds out what kind of host this is: the services that listen on it, the addresses
// that must never be limited, what its protocol stack has seen and says of itself, and what speaks
// against leaving traffic untracked or answering in its place (NAT, conntrack helpers).
//
// What the host's own rules may translate is read rule by rule: ruleset.go lists them, pins.go knows
// what the matches of a rule let through, nat.go what it does with that, rewrites.go remembers the
// answer until rules change. Whatever can't be read counts as if it touched everything.
//
// It only reads. What a caller can get wrong: everything is read from the network namespace of the
// calling thread.
package survey
