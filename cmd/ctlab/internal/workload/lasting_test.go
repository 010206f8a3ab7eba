package workload

import (
	"context"
	"net"
	"net/netip"
	"testing"

	"ctguard/cmd/ctlab/internal/service"
)

// server accepts one connection and hands it over.
func server(t *testing.T) (port uint16, accepted chan *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	accepted = make(chan *net.TCPConn, 1)
	go func() {
		if c, err := l.Accept(); err == nil {
			_, _ = c.Write([]byte(service.Line))
			accepted <- c.(*net.TCPConn)
		}
	}()
	return l.Addr().(*net.TCPAddr).AddrPort().Port(), accepted
}

// A connection that only listens counts as lost when it is reset, and as reset too.
func TestResetOfAListener(t *testing.T) {
	port, accepted := server(t)
	me := netip.MustParseAddr("127.0.0.1")
	w := &workload{spec: Spec{Targets: []netip.Addr{me}, SpeakPort: port}, failures: map[string]int{}}
	l, err := w.dialLasting(t.Context(), me, port)
	if err != nil {
		t.Fatal(err)
	}
	w.lasting = []*lasting{l}
	c := <-accepted
	if _, err := c.Write([]byte(service.Line)); err != nil {
		t.Fatal(err)
	}
	if err := l.use(); err != nil {
		t.Errorf("a line was not heard: %v", err)
	}
	if err := c.SetLinger(0); err != nil { // close with a reset
		t.Fatal(err)
	}
	_ = c.Close()
	w.note(l.talk(t.Context()))
	if res := w.result(); res.Lasting != 1 || res.Lost != 1 || res.Resets != 1 {
		t.Errorf("of %d connections %d are lost, %d reset (%v), want 1 of each", res.Lasting, res.Lost, res.Resets,
			res.Failures)
	}
}

// The end of the run is no loss.
func TestEndIsNoLoss(t *testing.T) {
	port, _ := server(t)
	me := netip.MustParseAddr("127.0.0.1")
	w := &workload{spec: Spec{Targets: []netip.Addr{me}, SpeakPort: port}, failures: map[string]int{}}
	l, err := w.dialLasting(t.Context(), me, port)
	if err != nil {
		t.Fatal(err)
	}
	ended, end := context.WithCancel(t.Context())
	end()
	if err := l.talk(ended); err != nil || l.lost {
		t.Errorf("lost is %v (%v), want no loss", l.lost, err)
	}
}
