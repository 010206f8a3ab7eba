package conntrack

import (
	"io"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ctguard/agent/conntrack/conntracktest"
	"ctguard/policy"
)

// Two hosts speak, an eviction takes their entries, and they go on: the next scan has that. Who only begins anew with
// the same ports does not go on.
func TestComebackOnTheWire(t *testing.T) {
	table, peer := openTracking(t)
	tcp, udp := echoes(t, peer)
	local := &net.TCPAddr{IP: conntracktest.Here4.AsSlice(), Port: 40_000}
	lasting, again := connect(t, "tcp", nil, tcp), connect(t, "tcp", local, tcp)
	stream := connect(t, "udp", nil, udp)
	assured := func() (n int) {
		for _, e := range dump(t, table) {
			if e.class(false) == policy.Assured {
				n++
			}
		}
		return n
	}
	for began := time.Now(); assured() < 3; time.Sleep(50 * time.Millisecond) { // UDP is a stream after two seconds
		speak(t, lasting, again, stream)
		if time.Since(began) > 10*time.Second {
			t.Fatalf("%d of 3 conversations", assured())
		}
	}
	here := policy.Source{Prefix: netip.PrefixFrom(conntracktest.Here4, 32)}
	if n, err := table.Evict(t.Context(), Eviction{Caps: []policy.Cap{{Prefix: here.Prefix}}}); err != nil || n != 3 {
		t.Fatalf("%d evicted, %v", n, err)
	}
	scan := func() []policy.Comeback {
		c, err := table.Scan(t.Context(), ScanOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return c.Comebacks
	}
	if got := scan(); !slices.Equal(got, []policy.Comeback{{Source: here, Taken: 3, Watched: 3}}) {
		t.Errorf("after the eviction: %+v", got)
	}
	if err := again.(*net.TCPConn).SetLinger(0); err != nil {
		t.Fatal(err)
	}
	again.Close()
	again = connect(t, "tcp", local, tcp)
	for began := time.Now(); assured() < 3; time.Sleep(50 * time.Millisecond) {
		speak(t, lasting, again, stream)
		if time.Since(began) > 10*time.Second {
			t.Fatalf("%d of 3 conversations are back", assured())
		}
	}
	want := []policy.Comeback{{Source: here, Taken: 3, Watched: 3, Back: 2}}
	if got := scan(); !slices.Equal(got, want) {
		t.Errorf("they go on: %+v, want %+v", got, want)
	}
	all := EntryFilter{Source: prefix("192.0.2.0/24")}
	if n, err := table.Remove(t.Context(), all, nil, false, nil); err != nil || n != 3 {
		t.Fatalf("%d evicted, %v", n, err)
	}
	if got := scan(); !slices.Equal(got, want) {
		t.Errorf("what somebody asked for is watched: %+v", got)
	}
}

// echoes has the peer repeat what it is told over TCP and UDP, and returns where.
func echoes(t *testing.T, peer *conntracktest.Peer) (tcp, udp net.Addr) {
	t.Helper()
	var stream net.Listener
	var packets *net.UDPConn
	var err, udpErr error
	peer.Do(func() {
		stream, err = net.Listen("tcp", netip.AddrPortFrom(conntracktest.There4, 80).String())
		packets, udpErr = net.ListenUDP("udp", &net.UDPAddr{IP: conntracktest.There4.AsSlice(), Port: 4500})
	})
	if err != nil || udpErr != nil {
		t.Fatal(err, udpErr)
	}
	t.Cleanup(func() { stream.Close(); packets.Close() })
	go func() {
		for {
			c, err := stream.Accept()
			if err != nil {
				return
			}
			go func() { defer c.Close(); _, _ = io.Copy(c, c) }()
		}
	}()
	go func() {
		b := make([]byte, 64)
		for {
			n, from, err := packets.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			_, _ = packets.WriteToUDPAddrPort(b[:n], from)
		}
	}()
	return stream.Addr(), packets.LocalAddr()
}

func connect(t *testing.T, network string, from *net.TCPAddr, to net.Addr) net.Conn {
	t.Helper()
	d := net.Dialer{Timeout: 5 * time.Second}
	if from != nil {
		d.LocalAddr = from
	}
	c, err := d.DialContext(t.Context(), network, to.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// speak has each connection ask and hear the answer.
func speak(t *testing.T, all ...net.Conn) {
	t.Helper()
	for _, c := range all {
		b := []byte("alive")
		_ = c.SetDeadline(time.Now().Add(5 * time.Second))
		if _, err := c.Write(b); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c, b); err != nil {
			t.Fatal(err)
		}
	}
}

// What is remembered is bounded, in all and of each source, however an eviction decides; and it is forgotten.
func TestComebackBounds(t *testing.T) {
	for _, way := range []string{"ranked", "counted"} {
		table := openTable(t)
		if way == "counted" {
			defer func(n int) { heapLimit = n }(heapLimit)
			heapLimit = -1
		}
		var caps []policy.Cap
		for i := range 3 {
			source := nth(addr("192.0.2.1"), i).String()
			fill(t, tcp(source, 200, tcpEstablished, busy, 1000)...)
			caps = append(caps, policy.Cap{Prefix: netip.MustParsePrefix(source + "/32"), Keep: 20})
		}
		if n, err := table.Evict(t.Context(), Eviction{Caps: caps}); err != nil || n != 3*180 {
			t.Fatalf("%s: %d evicted, %v", way, n, err)
		}
		for _, c := range table.comebacks.list() {
			if c.Taken != 180 || c.Watched != mostOfOne || c.Back != 0 {
				t.Errorf("%s: %+v", way, c)
			}
		}
		table.comebacks.begin(time.Now().Add(takenFor + time.Minute))
		if n := len(table.comebacks.taken) + len(table.comebacks.sources); n > 0 {
			t.Errorf("%s: %d are remembered for ever", way, n)
		}
	}
	var c comebacks
	now := time.Unix(1000, 0)
	for range 3 {
		c.beginEviction(now, 2000)
		for i := range 3 * mostTaken {
			e := entry{timeout: 100, state: tcpEstablished, protoInfo: protoInfoTCP, status: statusSeenReply | statusAssured}
			e.orig = tuple{src: address{0, v4Mapped | uint64(i)}, proto: unix.IPPROTO_TCP}
			c.take(policy.Source{Prefix: netip.PrefixFrom(e.orig.src.netip(), 32)}, &e)
		}
		if len(c.taken) != mostTaken || len(c.sources) != mostTaken {
			t.Fatalf("%d conversations of %d sources are remembered", len(c.taken), len(c.sources))
		}
		now = now.Add(2 * takenAtLeast)
	}
	for _, v := range c.taken {
		if !v.at.Equal(now.Add(-2 * takenAtLeast)) {
			t.Fatalf("one of %s is remembered", v.at)
		}
	}
}
