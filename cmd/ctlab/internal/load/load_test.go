package load

import (
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"ctguard/cmd/ctlab/internal/role"
)

var me = netip.MustParseAddr("127.0.0.1")

// measured runs a load for a moment.
func measured(t *testing.T, s Spec) Result {
	t.Helper()
	workers, err := s.workers()
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range workers {
		if err := w.open(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(w.close)
	}
	return s.measure(workers, role.Now())
}

func spec(kind Kind, to net.Addr) Spec {
	return Spec{
		Kind: kind, Sources: []netip.Addr{me}, Targets: []netip.AddrPort{netip.MustParseAddrPort(to.String())},
		Workers: 2, Warm: time.Millisecond, For: 50 * time.Millisecond,
	}
}

func TestUDP(t *testing.T) {
	c, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	go func() {
		buf := make([]byte, 64)
		for {
			n, from, err := c.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = c.WriteTo(buf[:n], from)
		}
	}()
	res := measured(t, spec(UDP, c.LocalAddr()))
	if res.Done == 0 || res.Failed > 0 || res.Rate() != float64(res.Done)/0.05 {
		t.Errorf("%+v, %v a second", res, res.Rate())
	}
}

// serve accepts connections and hands each to fn.
func serve(t *testing.T, fn func(net.Conn)) net.Addr {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go fn(c)
		}
	}()
	return l.Addr()
}

func TestTCP(t *testing.T) {
	to := serve(t, func(c net.Conn) {
		defer c.Close()
		buf := make([]byte, len(request))
		if _, err := io.ReadFull(c, buf); err == nil && string(buf) == string(request) {
			_, _ = c.Write([]byte("HTTP/1.1 200 OK\r\n\r\n"))
		}
	})
	if res := measured(t, spec(TCP, to)); res.Done == 0 || res.Failed > 0 {
		t.Errorf("%+v, want connections and none failed", res)
	}
	refusing := spec(TCP, serve(t, func(c net.Conn) { _ = c.Close() }))
	if res := measured(t, refusing); res.Done > 0 || res.Failed == 0 {
		t.Errorf("%+v from a server that hangs up, want failures only", res)
	}
}

// What the other side has not got does not count.
func TestBulk(t *testing.T) {
	var got int64
	done := make(chan struct{})
	to := serve(t, func(c net.Conn) {
		got, _ = io.Copy(io.Discard, c)
		close(done)
	})
	s := spec(Bulk, to)
	workers, err := s.workers()
	if err != nil || len(workers) != 1 {
		t.Fatalf("%d workers (%v), want one", len(workers), err)
	}
	if err := workers[0].open(); err != nil {
		t.Fatal(err)
	}
	res := s.measure(workers, role.Now())
	workers[0].close()
	<-done
	if res.Done == 0 || res.Failed > 0 || int64(float64(res.Done)*0.9) > got {
		t.Errorf("%+v, the other side got %d", res, got)
	}
}

func TestSpecIsChecked(t *testing.T) {
	good := spec(UDP, &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1})
	for name, change := range map[string]func(*Spec){
		"no kind": func(s *Spec) { s.Kind = "" }, "no source": func(s *Spec) { s.Sources = nil },
		"no target": func(s *Spec) { s.Targets = nil }, "no time": func(s *Spec) { s.For = 0 },
		"no worker": func(s *Spec) { s.Workers = 0 },
	} {
		s := good
		change(&s)
		if _, err := s.workers(); err == nil {
			t.Errorf("%s passes", name)
		}
	}
}
