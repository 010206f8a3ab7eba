package service

import "golang.org/x/sys/unix"

// spareFiles are descriptors that held connections do not get.
const spareFiles = 500

// holder remembers in which order silent HTTP connections came, so that where the
// system gives too few descriptors the oldest can be let go.
type holder struct {
	limit int
	open  int
	gens  []uint32 // by descriptor: which connection a number means
	queue []heldConn
}

type heldConn struct {
	fd  int
	gen uint32
}

// hold takes a new connection in, and lets old ones go if there are too many.
func (s *tcpServer) hold(fd int) {
	h := &s.held
	for fd >= len(h.gens) {
		h.gens = append(h.gens, make([]uint32, fd+1)...)
	}
	h.open++
	h.queue = append(h.queue, heldConn{fd, h.gens[fd]})
	for h.open > h.limit && len(h.queue) > 0 {
		oldest := h.queue[0]
		h.queue = h.queue[1:]
		if h.gens[oldest.fd] == oldest.gen {
			vanish(oldest.fd)
			s.close(oldest.fd)
		}
	}
}

// drop forgets a connection that ended.
func (h *holder) drop(fd int) {
	h.open--
	h.gens[fd]++
}

// vanish makes a close silent: no FIN, no RST. To the table and to the peer the
// connection stands as before, which is what a server with more descriptors would
// have. (A connection that was closed aloud is one that the kernel may evict early.)
func vanish(fd int) {
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_REPAIR, 1) // without it the close is an ordinary one
}
