// Package control is the agent's API: HTTP and JSON on a Unix socket, Prometheus metrics there and on an
// address of their own, and the client that commands ask it with.
//
// The server knows nothing of the agent's loop. What anybody may read the loop publishes on a [Board]: the
// [Status] after each tick, which nobody changes from then on, events, the history of the last hours, metrics.
// What needs the loop itself goes to it as a typed [Request] in a [Question], and comes back as its answer; a
// client that leaves meanwhile leaves an answer that nobody reads.
//
// Reading is for everybody who may open the socket; changing is for root and the members of one group, judged
// by the credentials of the process at the other end. What others than root may hold of the server at a time
// is bounded so that root always gets in; see limits.
//
// What a caller can get wrong: a [Status] given to [Board.Publish] must not be changed afterwards, and whoever
// takes a [Question] from [Board.Questions] must answer it, else its client waits until it gives up.
package control
