// Package conntrackfill makes network namespaces and fills their conntrack tables with entries of nobody's, for
// tests and benchmarks. It builds its messages with a library of its own, so that a mistake in how ctguard
// writes them cannot hide behind the same mistake here.
//
// What a caller can get wrong: [Fill] makes entries in the namespace of the calling thread, whatever that is:
// [Enter] one first.
package conntrackfill
