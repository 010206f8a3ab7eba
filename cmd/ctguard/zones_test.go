package main

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ctguard/agent/conntrack"
	"ctguard/agent/conntrack/conntrackfill"
	"ctguard/agent/conntrack/conntracktest"
	"ctguard/agent/state"
	"ctguard/policy"
)

// twoTenants gives each of two interfaces a zone, both ways.
const twoTenants = `table inet tenants {
	chain in {
		type filter hook prerouting priority raw;
		iifname "here0" ct zone set 1
		iifname "here1" ct zone set 2
	}
	chain out {
		type filter hook output priority raw;
		oifname "here0" ct zone set 1
		oifname "here1" ct zone set 2
	}
}
`

// Two tenants have one address, each in a zone of its own. One of them floods. The other one keeps all its
// connections, however long they are silent, and opens new ones as ever.
func TestTenantsInZones(t *testing.T) {
	const flooder, innocent, idle, flood = 1, 2, 30, capacity - 50
	h := newHost(t)
	other := h.secondTenant()
	h.listenOn("here1", 8080)
	day := policy.OrdinaryDay{Learnt: time.Hour, Updated: time.Now(), Fitted: capacity, Flows: true}
	if err := state.At(h.state).KeepDayNow(&day); err != nil {
		t.Fatal(err)
	}
	h.talk(conntracktest.There4, innocent, idle, 400_000)
	h.start()
	h.talk(conntracktest.There4, flooder, flood, 431_000)
	h.until("the tenant that floods is limited and loses entries", func() bool {
		s := h.status()
		return len(s.Limited) > 0 && s.Evicted > 0
	})
	late, opened := 0, 200 // many more than a limited source may open in that time
	for range opened {
		if took, err := connectFrom(other, 8080); err != nil || took > 500*time.Millisecond {
			late++
		}
	}
	if late > 0 {
		t.Errorf("%d of %d new connections of the innocent tenant were late or failed", late, opened)
	}
	left := h.leftIn()
	if left[innocent] < idle {
		t.Errorf("%d of the %d lasting connections of the innocent tenant are left", left[innocent], idle)
	}
	if left[flooder] >= flood {
		t.Errorf("the tenant that floods still has its %d entries", left[flooder])
	}
	for _, l := range h.status().Limited {
		if l.Zone != flooder {
			t.Errorf("%s is limited", l.Source())
		}
	}
	h.stop()
}

// secondTenant makes another peer, with the addresses of the first one, behind another interface.
func (h *host) secondTenant() *conntracktest.Peer {
	h.Helper()
	other, err := conntracktest.NewPeerAt("here1", "there1")
	if err != nil {
		h.Fatal(err)
	}
	h.Cleanup(other.Close)
	c := exec.Command("nft", "-f", "-")
	c.Stdin = strings.NewReader(twoTenants)
	if out, err := c.CombinedOutput(); err != nil {
		h.Fatalf("%s", out)
	}
	for _, name := range []string{"all", "here0", "here1"} {
		if err := conntracktest.Run("sysctl -qw net.ipv4.conf." + name + ".rp_filter=0"); err != nil {
			h.Fatal(err)
		}
	}
	return other
}

// listenOn answers on a port what comes by one interface.
func (h *host) listenOn(device string, port uint16) {
	h.Helper()
	bind := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
		if e := c.Control(func(fd uintptr) { err = unix.BindToDevice(int(fd), device) }); e != nil {
			return e
		}
		return err
	}}
	l, err := bind.Listen(context.Background(), "tcp4", fmt.Sprintf(":%d", port))
	if err != nil {
		h.Fatal(err)
	}
	h.Cleanup(func() { l.Close() })
	go accept(l, echo)
}

// talk makes connections of a source in a zone that have so many seconds left.
func (h *host) talk(source netip.Addr, zone uint16, n int, left uint32) {
	h.Helper()
	const established = 3
	flows := make([]conntrackfill.Flow, n)
	for i := range flows {
		flows[i] = conntrackfill.Flow{Src: source, Dst: conntracktest.Here4, Proto: unix.IPPROTO_TCP,
			SrcPort: uint16(2000 + i), DstPort: 443, State: established,
			Status: conntrackfill.SeenReply | conntrackfill.Assured, Timeout: left, Zone: zone}
	}
	if made, err := conntrackfill.Fill(slices.Values(flows)); err != nil || made != n {
		h.Fatalf("%d of %d entries: %v", made, n, err)
	}
}

// leftIn counts the lasting connections to port 443 by zone.
func (h *host) leftIn() map[uint16]int {
	h.Helper()
	table, err := conntrack.Open()
	if err != nil {
		h.Fatal(err)
	}
	defer table.Close()
	left := make(map[uint16]int)
	if err := table.Entries(h.Context(), conntrack.EntryFilter{Port: 443}, func(e conntrack.Entry) bool {
		left[e.Zone]++
		return true
	}); err != nil {
		h.Fatal(err)
	}
	return left
}

// connectFrom opens a connection from a peer to a port of this host and closes it, and says how long it took.
func connectFrom(peer *conntracktest.Peer, port uint16) (took time.Duration, err error) {
	var c net.Conn
	peer.Do(func() {
		began := time.Now()
		c, err = net.DialTimeout("tcp", netip.AddrPortFrom(conntracktest.Here4, port).String(), 3*time.Second)
		took = time.Since(began)
	})
	if err != nil {
		return took, err
	}
	return took, c.Close()
}
