package nft

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"ctguard/policy"
)

// TestClosedPorts drops what no socket waits for before it becomes an entry, and nothing else: not what
// comes to a listener, to a socket in the middle of a handshake, to one that only asks, to one that
// is closing, or from an allowed source.
func TestClosedPorts(t *testing.T) {
	l := newLink(t)
	l.serve(80)
	before := l.mustDial("tcp", client2, 80)
	mustEcho(t, before)
	table := open(t)
	apply(t, table, Desired{Posture: policy.Posture{ClosedPorts: true}, Allow: []netip.Prefix{prefix(client4 + "/32")}})

	for _, from := range []string{client2, client6} {
		if _, err := l.dial("tcp", from, 81, refuses); !timedOut(err) {
			t.Errorf("a closed TCP port from %s: %v, want silence", from, err)
		}
		if err := echoed(l.mustDial("udp", from, 81), refuses); !timedOut(err) {
			t.Errorf("a closed UDP port from %s: %v, want silence", from, err)
		}
	}
	wantEntries(t, client2, 1) // the connection from before
	wantEntries(t, client6, 0)
	if _, err := l.dial("tcp", client4, 81, refuses); !refused(err) {
		t.Errorf("a closed port from an allowed source: %v, want a refusal", err)
	}

	mustEcho(t, before)
	for range 20 { // each leaves a socket in TIME_WAIT on one side or the other
		c := l.mustDial("tcp", client3, 80)
		mustEcho(t, c)
		c.Close()
		c = l.mustDial("tcp", client6, 80)
		mustEcho(t, c)
		c.Close()
	}
	mustEcho(t, l.mustDial("udp", client3, 80))
	asks(t, l)
	if w := work(t, table); w.ClosedDropped < 4 {
		t.Errorf("%d packets counted, want at least 4", w.ClosedDropped)
	}
}

// A few packets to closed ports are answered as ever: somebody may wait for the answer.
func TestFewClosedPorts(t *testing.T) {
	l := newLink(t)
	apply(t, open(t), Desired{Posture: policy.Posture{ClosedPorts: true, ClosedRate: 2}})
	var answered, silent int
	for range 5 {
		switch _, err := l.dial("tcp", client2, 81, refuses); {
		case refused(err):
			answered++
		case timedOut(err):
			silent++
		default:
			t.Fatal(err)
		}
	}
	if answered < 2 || silent < 1 {
		t.Errorf("%d attempts refused and %d not answered, want at least 2 and 1", answered, silent)
	}
}

// asks sends a question from a socket of the host that listens nowhere, and one over TCP, to a service
// of the client's.
func asks(t *testing.T, l *link) {
	t.Helper()
	var packets net.PacketConn
	var listener net.Listener
	var err error
	l.do(func() {
		if packets, err = net.ListenPacket("udp4", client2+":53"); err == nil {
			listener, err = net.Listen("tcp4", client2+":53")
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { packets.Close(); listener.Close() })
	go echoPackets(packets)
	go echoStreams(listener)
	for _, network := range []string{"udp4", "tcp4"} {
		c, err := net.DialTimeout(network, client2+":53", patience)
		if err != nil {
			t.Fatal(err)
		}
		mustEcho(t, c)
		c.Close()
	}
}

func timedOut(err error) bool {
	var n net.Error
	return errors.Is(err, os.ErrDeadlineExceeded) || errors.As(err, &n) && n.Timeout()
}

// TestBudgets holds new packets of a class to a rate before they become entries, and nobody else's: of
// TCP only what opens a connection.
func TestBudgets(t *testing.T) {
	l := newLink(t)
	l.serve(80)
	l.serve(443)
	open80, stream := l.mustDial("tcp", client2, 80), l.mustDial("udp", client2, 80)
	mustEcho(t, open80)
	mustEcho(t, stream)
	table := open(t)
	const rate = 2
	apply(t, table, Desired{
		Allow: []netip.Prefix{prefix(client4 + "/32")},
		Posture: policy.Posture{Budgets: []policy.Budget{
			{Class: policy.FlowClass{Protocol: 6, Port: 80}, Rate: rate},
			{Class: policy.FlowClass{Protocol: 17, Port: 80}, Rate: rate},
		}}})
	for i := range 100 {
		l.segment(fmt.Sprintf("192.0.2.%d", 100+i), 80, 0x02)
		mustEcho(t, open80)
		mustEcho(t, stream) // a flow that there is
	}
	for range 10 {
		echoed(l.mustDial("udp", client3, 80), time.Millisecond)
	}
	if w := work(t, table).BudgetDropped; w < 90 {
		t.Errorf("%d SYNs dropped of 100 at once, with %d a second allowed", w, rate)
	}
	for _, network := range []string{"tcp", "udp"} {
		mustEcho(t, l.mustDial(network, client3, 443)) // another class
		mustEcho(t, l.mustDial(network, client4, 80))  // allowed
	}
	kept := 0
	for i := range 100 {
		kept += len(entries(t, fmt.Sprintf("192.0.2.%d", 100+i)))
	}
	if kept > 100-90 {
		t.Errorf("%d of 100 SYNs have entries", kept)
	}
}

// TestReserve lets others open no more than the rate, and leaves what there is alone, answered or not: who is on the
// allowlist opens what they like.
func TestReserve(t *testing.T) {
	l := newLink(t)
	l.serve(80)
	open80, stream := l.mustDial("tcp", client2, 80), l.mustDial("udp", client2, 80)
	mustEcho(t, open80)
	mustEcho(t, stream)
	silent, err := net.ListenPacket("udp", ":9999")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { silent.Close() })
	unanswered := l.mustDial("udp", client2, 9999)
	speak := func() {
		if _, err := unanswered.Write([]byte("one-way")); err != nil {
			t.Fatal(err)
		}
	}
	speak()
	table := open(t)
	allowed := []netip.Prefix{prefix(client4 + "/32")}
	apply(t, table, Desired{Allow: allowed, Posture: policy.Posture{Reserve: policy.Reserve{Engaged: true}}})
	for range 10 {
		mustEcho(t, open80)
		mustEcho(t, stream)
		speak()
	}
	if w := work(t, table).ReserveDropped; w != 0 {
		t.Errorf("%d packets of flows that there are were dropped", w)
	}
	for i := range 20 {
		l.segment(fmt.Sprintf("192.0.2.%d", 100+i), 80, 0x02)
	}
	echoed(l.mustDial("udp", client3, 80), time.Millisecond)
	if w := work(t, table).ReserveDropped; w != 21 {
		t.Errorf("%d of 21 new flows were refused", w)
	}
	mustEcho(t, l.mustDial("tcp", client4, 80))
	mustEcho(t, l.mustDial("udp", client4, 80))
	apply(t, table, Desired{Allow: allowed, Posture: policy.Posture{Reserve: policy.Reserve{Engaged: true, Rate: 40}}})
	before := work(t, table).ReserveDropped
	for i := range 100 {
		l.segment(fmt.Sprintf("192.0.2.%d", 100+i), 81, 0x02)
	}
	if w := work(t, table).ReserveDropped - before; w < 80 || w > 98 {
		t.Errorf("%d of 100 SYNs at once were refused, with 40 a second allowed and two at once", w)
	}
}
