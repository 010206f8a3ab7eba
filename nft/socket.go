package nft

import (
	"errors"
	"os"
	"time"

	"github.com/mdlayher/netlink"
)

// How long the kernel may take to answer a question, and to change rules: far longer than it ever does, and all of a
// tick's together less than the watchdog of package agent has patience for.
const (
	answerWithin = 2 * time.Second
	changeWithin = 6 * time.Second
)

// socket is what a table belongs to. The library waits for ever for an answer that got lost (ENOBUFS), and takes
// what is left of one request for the answer to the next; and a new socket would be another owner.
type socket struct {
	conn   *netlink.Conn
	unread bool // the last request failed: what is left of its answer may come yet
}

// bufferBound is how much may be on its way in each direction, in bytes: several times a table with the most limits
// that there may be. It takes no memory by itself. The library would see to it, but not for a socket that has options.
const bufferBound = 64 << 20

// take is a socket option of the library.
func (s *socket) take(conn *netlink.Conn) error {
	s.conn = conn
	return errors.Join(conn.SetWriteBuffer(bufferBound), conn.SetReadBuffer(bufferBound))
}

// asks readies the socket for requests that are answered within so long. answered is told how they ended.
func (s *socket) asks(within time.Duration) (answered func(*error)) {
	if s.unread {
		s.drain()
	}
	_ = s.conn.SetReadDeadline(time.Time{}) // it fails only where the socket is closed, and there all else does
	// A deadline alone would not do: the library goes on after an error for as long as there is something to read.
	late := time.AfterFunc(within, s.drain)
	return func(err *error) {
		s.unread = !late.Stop() || *err != nil
	}
}

// Bounds of what is read to be thrown away.
const (
	mostDrained = 10_000
	drainPause  = 20 * time.Millisecond
)

// drain throws away what is left in the socket: the kernel answers before a request returns, so what comes does so at
// once.
func (s *socket) drain() {
	for range mostDrained {
		_ = s.conn.SetReadDeadline(time.Now().Add(drainPause))
		if _, err := s.conn.Receive(); errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, os.ErrClosed) {
			return
		}
	}
}
