// Package round is ordinary traffic for measuring what a path costs: questions and answers over UDP, connections with
// one request each, one bulk stream.
//
// One thread is client and server. A packet that it sends over veth links is received within the call that sends it, so
// nothing is scheduled and nobody waits: what a round takes is the processor time of both ends and of all between them,
// and nothing else. It says nothing of how much a crowd could send.
//
// What a caller can get wrong: the thread of the clients' namespace stays on one processor after the first
// measurement, so no process should be started from that namespace later on.
package round
