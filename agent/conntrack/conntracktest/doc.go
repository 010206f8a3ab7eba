// Package conntracktest is for tests on the real kernel: it gives each a network namespace, another host to talk
// to, and another user to be. Only tests import it; package conntrackfill fills the tables.
//
// What a caller can get wrong: a namespace belongs to the thread of the test that asked for it; subtests run on
// threads, and so in namespaces, of their own.
package conntracktest
