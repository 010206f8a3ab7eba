package control

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"ctguard/agent/state"
)

// limits bound what clients can take from the server, however many there are and whatever they do.
type limits struct {
	connections int           // of the control socket, at a time
	followers   int           // of them, how many may wait for events
	others      int           // one part in this many of either is root's alone
	scrapers    int           // connections of the metrics address, at a time
	changes     rate.Limit    // per second, by all others than root; each is an event, a line in the log and a file
	burst       int           // of them
	body        int64         // of a request, in bytes
	request     time.Duration // for a request to arrive, from its first byte or the connection's start
	answer      time.Duration // for an answer to be taken
	idle        time.Duration // between two requests of a connection
}

// usual are the limits outside of tests.
var usual = limits{
	connections: 64, followers: 32, others: 4, scrapers: 64, changes: 5, burst: 50, body: 8 << 10,
	request: 5 * time.Second, answer: 10 * time.Second, idle: 30 * time.Second,
}

// places is how many of something may be taken at a time, some of them by root only.
type places struct {
	mu    sync.Mutex
	taken int
	most  int // for root
	rest  int // for everybody else
}

func newPlaces(most, others int) *places { return &places{most: most, rest: most - most/others} }

// take takes a place if there is one.
func (p *places) take(root bool) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	most := p.rest
	if root {
		most = p.most
	}
	if p.taken >= most {
		return false
	}
	p.taken++
	return true
}

// free gives a place back.
func (p *places) free() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.taken--
}

// boundedListener lets so many control connections be open at a time and tells the others to come again.
type boundedListener struct {
	net.Listener
	limits   limits
	places   *places
	refusing chan struct{} // as many as are being told at a time
}

func newBoundedListener(l net.Listener, lim limits) *boundedListener {
	return &boundedListener{l, lim, newPlaces(lim.connections, lim.others), make(chan struct{}, 8)}
}

// boundedConn is a control connection that has a place.
type boundedConn struct {
	net.Conn
	peer *state.Credentials
	free func()
}

// Close closes the connection and gives its place back.
func (c *boundedConn) Close() error {
	err := c.Conn.Close()
	c.free()
	return err
}

// Accept waits for a connection that there is a place for.
func (l *boundedListener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		peer := state.Peer(c)
		if l.places.take(isRoot(peer)) {
			return &boundedConn{c, peer, sync.OnceFunc(l.places.free)}, nil
		}
		select {
		case l.refusing <- struct{}{}:
			go func() {
				l.refuse(c)
				<-l.refusing
			}()
		default:
			c.Close()
		}
	}
}

// refuse reads a request and answers that there is no place. To close what was not read would take the answer
// away from the client.
func (l *boundedListener) refuse(c net.Conn) {
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(l.limits.request))
	r, err := http.ReadRequest(bufio.NewReader(io.LimitReader(c, maxHeader)))
	if err != nil {
		return
	}
	_, _ = io.Copy(io.Discard, io.LimitReader(r.Body, l.limits.body))
	text := fmt.Sprintf("%d connections are open already: try again in a moment\n", l.limits.connections)
	fmt.Fprintf(c, "HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain; charset=utf-8\r\n"+
		"Content-Length: %d\r\nConnection: close\r\n\r\n%s", len(text), text)
}
