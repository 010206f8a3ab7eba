// Package survey finds out what kind of host this is: the services that listen on it, the addresses
// that must never be limited, what its protocol stack has seen and says of itself, and what speaks
// against leaving traffic untracked or answering in its place (NAT, conntrack helpers).
//
// What the host's own rules do is read rule by rule: dump.go asks the kernel, ruleset.go lists chains and rules,
// rule.go, statements.go and extensions.go follow one rule of nftables and iptables, sets.go the sets it looks into.
// constraints.go is what the matches of a rule say of the packets that come further, effect.go what becomes of them
// there, nat.go which services a translation touches, exact.go and exactextensions.go which translations can be
// repeated to the letter, targets.go who still goes where one led before, refusals.go and skips.go what follows from
// all that. rewrites.go remembers the answer until watch.go says that something changed on which it depends; legacy.go
// looks at iptables-legacy. Whatever can't be read counts as if it touched everything.
//
// It only reads. What a caller can get wrong: everything is read from the network namespace of the
// calling thread.
package survey
