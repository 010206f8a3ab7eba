package service

import (
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// SpeakPause lies between two lines of a server that speaks by itself.
const SpeakPause = 500 * time.Millisecond

// Line is what it says.
const Line = "something happened\n"

// audience is who is spoken to, and when next.
type audience struct {
	conns []int // descriptors
	next  time.Time
}

// greet takes a connection into the audience.
func (s *tcpServer) greet(fd int) {
	s.audience.conns = append(s.audience.conns, fd)
	s.say(fd)
}

// speak sends a line to the whole audience when it is time. A server that pushes news is the one
// that finds out first when somebody on the way has forgotten the connection.
func (s *tcpServer) speak() {
	now := time.Now()
	if now.Before(s.audience.next) {
		return
	}
	s.audience.next = now.Add(SpeakPause)
	for _, fd := range slices.Clone(s.audience.conns) { // close changes it
		s.say(fd)
	}
}

func (s *tcpServer) say(fd int) {
	if _, err := unix.Write(fd, []byte(Line)); err != nil && err != unix.EAGAIN {
		s.close(fd)
	}
}
