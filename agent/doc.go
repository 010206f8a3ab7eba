// Package agent is the control loop: once per tick it observes the conntrack table, asks package
// policy what to do, and brings the kernel to that posture, or, in a dry run, only says what it
// would do.
//
// Goroutines own their data by type. One owns the [loop]: everything that decides. A second one walks the
// table (scan, evict, retime), so that a long walk never delays the next tick; it gets a [walk] with all that
// it needs to know, and gives back a function for the loop to run. A third owns the [survey.Surveyor] and
// looks at the host every few seconds. The control server, [control.Server], sees what the loop publishes on
// the [control.Board], and asks the loop by the questions there.
//
// What a caller can get wrong: [New] opens everything in the network namespace of the calling
// thread, and [Agent.Run] must run in that namespace too.
package agent
