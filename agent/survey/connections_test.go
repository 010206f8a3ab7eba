package survey

import (
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"ctguard/agent/conntrack/conntracktest"
)

// peers are the far ends of connections as people write them.
func peers(list []Live) []string {
	var remote []string
	for _, c := range list {
		remote = append(remote, c.Remote.String())
	}
	slices.Sort(remote)
	return remote
}

// Half-closed connections count, those to other ports and those still shaking hands don't.
func TestEstablished(t *testing.T) {
	peer := enterPair(t, "nft")
	h := New("/")
	accepted := make(chan net.Conn, 8)
	for _, at := range []string{":80", ":443"} {
		listener, err := net.Listen("tcp", at)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { listener.Close() })
		go func() {
			for {
				c, err := listener.Accept()
				if err != nil {
					return
				}
				accepted <- c
			}
		}()
	}
	connect := func(port uint16, to netip.Addr) (here, there *net.TCPConn) {
		peer.Do(func() { there = dial(t, "tcp", netip.AddrPortFrom(to, port).String()).(*net.TCPConn) })
		here = (<-accepted).(*net.TCPConn)
		t.Cleanup(func() { here.Close() })
		return here, there
	}
	_, open := connect(80, conntracktest.Here4)
	_, six := connect(80, conntracktest.Here6)
	_, theirEnd := connect(80, conntracktest.Here4)
	ourEnd, ended := connect(80, conntracktest.Here4)
	_, other := connect(443, conntracktest.Here4)
	if err := theirEnd.CloseWrite(); err != nil { // CLOSE_WAIT here
		t.Fatal(err)
	}
	if err := ourEnd.CloseWrite(); err != nil { // FIN_WAIT2 here
		t.Fatal(err)
	}
	// The third packet of a handshake never comes.
	run(t, "nft add table ip half", "nft add chain ip half in { type filter hook input priority 0 ; }",
		"nft add rule ip half in tcp dport 80 tcp flags & (syn|ack) == ack drop")
	peer.Do(func() { dial(t, "tcp4", netip.AddrPortFrom(conntracktest.Here4, 80).String()) })

	local := func(list ...*net.TCPConn) (texts []string) {
		for _, c := range list {
			texts = append(texts, c.LocalAddr().String())
		}
		slices.Sort(texts)
		return texts
	}
	many := map[uint16]bool{80: true}
	for p := range uint16(mostFiltered) {
		many[1000+p] = true
	}
	for _, c := range []struct {
		name  string
		ports map[uint16]bool
		want  []string
	}{
		{"one port", map[uint16]bool{80: true, 443: false}, local(open, six, theirEnd, ended)},
		{"two ports", map[uint16]bool{80: true, 443: true}, local(open, six, theirEnd, ended, other)},
		{"the first and the last of three", map[uint16]bool{80: true, 81: true, 443: true},
			local(open, six, theirEnd, ended, other)},
		{"between others", map[uint16]bool{1: true, 443: true, 65535: true}, local(other)},
		{"more than the kernel is asked for", many, local(open, six, theirEnd, ended)},
		{"none", nil, nil},
	} {
		var got []Live
		var err error
		for range 100 { // a FIN may still be on its way
			if got, err = h.Established(c.ports, 100); err != nil || slices.Equal(peers(got), c.want) {
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
		if diff := cmp.Diff(c.want, peers(got)); diff != "" || err != nil {
			t.Errorf("%s: peers (-want +got), error %v:\n%s", c.name, err, diff)
		}
	}
	if got, err := h.Established(map[uint16]bool{80: true},
		2); err != nil || len(got) != 2 || strings.Contains(peers(got)[0], "443") {
		t.Errorf("at most two: %v (%v)", got, err)
	}
}
