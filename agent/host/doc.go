// Package host finds out what kind of host this is: the services that listen on it, the addresses
// that must never be held back, what its protocol stack has seen, and what speaks against leaving
// traffic untracked (NAT, conntrack helpers).
//
// It only reads. What a caller can get wrong: everything is read from the network namespace of the
// calling thread.
package host
