// Package load is ordinary traffic as fast as it goes, to be measured: questions and answers over
// UDP, connections with one request each, one bulk stream.
//
// It runs as a role in the clients' namespace with real sockets. The loop is closed: each of a
// fixed number of workers begins anew when its last round is done, so the figure is what client,
// network and server manage together on this machine's processors. It says nothing about how much
// an open crowd could send.
package load
