package main

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ctguard/agent/conntrack"
	"ctguard/agent/conntrack/conntrackfill"
	"ctguard/agent/conntrack/conntracktest"
	"ctguard/policy"
)

// stateful is what many hosts have: answers to what was asked, and what is offered.
const stateful = `table inet filter {
	chain input {
		type filter hook input priority filter; policy drop;
		ct state established,related accept
		iifname lo accept
		tcp dport { 22, 8080 } accept
	}
}
`

// A new ssh connection of an operator succeeds in under a second at every level, however full the table is. At level 0,
// where ctguard does nothing, nobody gets in.
func TestOperatorGetsIn(t *testing.T) {
	if testing.Short() {
		t.Skip("it fills the whole table")
	}
	h, table := guardLogins(t, stateful)
	h.hold(0)
	fillUp(t, table, 1)
	if took, err := h.connect(); err == nil {
		t.Fatalf("at level 0 it took %s: the table is not full", took)
	}
	for level := 1; level <= 8; level++ {
		h.hold(level)
		fillUp(t, table, 1)
		h.until("the lane opens", func() bool {
			return slices.ContainsFunc(h.status().Selectors, func(s policy.SelectorStatus) bool {
				return strings.Contains(s.Selector, conntracktest.There4.String()) && s.Stage != "tracked" && s.Stage != "watched"
			})
		})
		for range 3 {
			if took, err := h.connect(); err != nil {
				t.Errorf("level %d: an operator's new connection took %s: %v", level, took, err)
			}
		}
	}
	h.stop()
}

// knowsNew lets in what conntrack calls new, as many hosts do: untracked packets are not that.
const knowsNew = `table inet filter {
	chain input {
		type filter hook input priority filter; policy drop;
		ct state established,related accept
		iifname lo accept
		ct state new tcp dport 22 accept
		ct state new udp dport 8080 accept
	}
}
`

// Where the management port must stay tracked, the last entries of the table are kept for operators: at every level
// their new connections succeed in under a second while a flood takes all the rest.
func TestOperatorGetsInTracked(t *testing.T) {
	if testing.Short() {
		t.Skip("it fills the whole table")
	}
	h, table := guardLogins(t, knowsNew)
	h.hold(1)
	fillUp(t, table, 0.97)
	h.drown()
	for level := 1; level <= 8; level++ {
		h.hold(level)
		h.until("nothing is left for others, or the level made room", func() bool {
			s := h.status()
			return s.Count > s.Capacity-s.Capacity/50 || level >= 6
		})
		for range 3 {
			if took, err := h.connect(); err != nil {
				s := h.status()
				t.Errorf("level %d, %d of %d entries: an operator's new connection took %s: %v", level, s.Count, s.Capacity,
					took, err)
			}
		}
	}
	h.hold(0)
	h.until("the table is full", func() bool { s := h.status(); return s.Count >= s.Capacity })
	got := 0
	for range 5 {
		if _, err := h.connect(); err == nil {
			got++
		}
	}
	if got == 5 {
		t.Error("at level 0 every new connection succeeded: the flood is none")
	}
	h.stop()
}

// guardLogins makes a host with rules, a listener on port 22 that allowlists its peer, and the daemon.
func guardLogins(t *testing.T, rules string) (*host, *conntrack.Table) {
	t.Helper()
	h := newHost(t)
	c := exec.Command("nft", "-f", "-")
	c.Stdin = strings.NewReader(rules)
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("%s", out)
	}
	text := fmt.Sprintf("socket = %q\nstate_dir = %q\nallow = [%q]\n", h.dir+"/ctguard.sock", h.state,
		conntracktest.There4.String())
	if err := os.WriteFile(h.config, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	h.converse(22)
	h.start()
	table, err := conntrack.Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { table.Close() })
	return h, table
}

// drown sends datagrams of ever other addresses to port 8080 until the test ends, a minute at most: some ten thousand
// new flows a second.
func (h *host) drown() {
	h.Helper()
	fd := -1
	var err error
	h.peer.Do(func() { fd, err = unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW) })
	if err != nil {
		h.Fatal(err)
	}
	end, ended := make(chan struct{}), make(chan struct{})
	h.Cleanup(func() { close(end); <-ended; unix.Close(fd) })
	to := &unix.SockaddrInet4{Addr: conntracktest.Here4.As4()}
	packet := make([]byte, 28)
	packet[0], packet[8], packet[9] = 0x45, 64, unix.IPPROTO_UDP
	copy(packet[16:], to.Addr[:])
	binary.BigEndian.PutUint16(packet[22:], 8080)
	binary.BigEndian.PutUint16(packet[24:], 8) // of a header alone, and without a checksum
	go func() {
		defer close(ended)
		every, enough := time.NewTicker(5*time.Millisecond), time.After(time.Minute)
		defer every.Stop()
		for n := uint32(0); ; {
			for range 100 {
				n++
				copy(packet[12:], []byte{198, 18 + byte(n>>16&1), byte(n >> 8), byte(n)})
				binary.BigEndian.PutUint16(packet[20:], uint16(1024+n>>17))
				_ = unix.Sendto(fd, packet, 0, to)
			}
			select {
			case <-end:
				return
			case <-enough:
				return
			case <-every.C:
			}
		}
	}()
}

// connect opens a connection from the peer to port 22 within a second and closes it, and says how long it took to be
// there.
func (h *host) connect() (took time.Duration, err error) {
	var c net.Conn
	h.peer.Do(func() {
		began := time.Now()
		c, err = net.DialTimeout("tcp", netip.AddrPortFrom(conntracktest.Here4, 22).String(), time.Second)
		took = time.Since(began)
	})
	if err != nil {
		return took, err
	}
	return took, c.Close()
}

// fillUp makes entries until so much of the table is full; at 1 until the kernel has no room for more.
func fillUp(t *testing.T, table *conntrack.Table, part float64) {
	t.Helper()
	most, err := table.Max()
	if err != nil {
		t.Fatal(err)
	}
	now, err := table.Count()
	if err != nil {
		t.Fatal(err)
	}
	// Addresses that were not used before: what is there already would make no more.
	base := uint32(time.Now().UnixNano())
	dst := netip.MustParseAddr("198.51.100.1")
	_, _ = conntrackfill.Fill(func(yield func(conntrackfill.Flow) bool) {
		for i := range uint32(max(0, int(part*float64(most+64))-now)) {
			src := netip.AddrFrom4([4]byte{10, byte((base + i) >> 16), byte((base + i) >> 8), byte(base + i)})
			if !yield(conntrackfill.Flow{Src: src, Dst: dst, Proto: unix.IPPROTO_TCP, SrcPort: uint16(base >> 16), DstPort: 80,
				State: 3, Status: conntrackfill.SeenReply | conntrackfill.Assured, Timeout: 3600}) {
				return
			}
		}
	})
}
