// Package agent is the control loop: once per tick it observes the conntrack table, asks package
// policy what to do, and brings the kernel to that posture, or, in a dry run, only says what it
// would do.
//
// One goroutine owns the loop and everything that decides; a second one walks the table (scan,
// evict, retime), so that a long walk never delays the next tick; a third looks at the host
// (services, addresses, NAT) every few seconds. The control socket asks the loop by sending it
// functions to run between two ticks.
//
// What a caller can get wrong: [New] opens everything in the network namespace of the calling
// thread, and [Agent.Run] must run in that namespace too.
package agent
