// Package flood sends the attacks.
//
// It runs as a role in the attacker's namespace and writes frames to an
// AF_PACKET socket, so that thousands of source addresses need not exist in any
// kernel and none of them answers with a reset. It is bounded three times: by
// duration, by a packet limit and by its parent's life. It refuses to send from or
// to an address outside the documentation ranges, and in the namespace that ctlab
// itself was started in.
package flood
