// Package role runs parts of the lab as processes of their own.
//
// A part (the flood, the clients, the services) is this same program, started
// again in a network namespace with its role's name in the environment. Parent
// and child speak JSON lines on the child's standard input and output: a
// specification, ready, start, stop, a result. A child whose input ends leaves at
// once, so no child outlives its parent even where the parent-death signal fails.
//
// What a caller can get wrong: a program that spawns roles must call Hook first
// thing in main (a test, in TestMain); without it the child would be a second
// copy of the whole program. Spawn refuses to run in such a copy.
package role
