// Package lab runs a scenario: a topology, an attack, a guard, clients, and what
// came of it.
//
//	res, err := lab.Run(ctx, lab.Scenario{Topology: "server", Attack: "handshake", Guard: "none"})
//
// Run needs root. It makes every namespace it touches; the one thing outside of them is
// nf_conntrack_max, global to the machine, which it lowers for the run (the
// table of an unprotected host would otherwise not fill) and has put back by the
// guardian process on every exit.
//
// What a caller can get wrong: the program must call role.Hook(lab.Roles()) first thing in
// main, and a test in TestMain, because Run starts this same program again for its
// parts. Only one Run at a time changes the machine; a second one waits.
package lab
