package main

import (
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
	h := newHost(t)
	c := exec.Command("nft", "-f", "-")
	c.Stdin = strings.NewReader(stateful)
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
	defer table.Close()
	h.hold(0)
	fillUp(t, table)
	if took, err := h.connect(time.Second); err == nil {
		t.Fatalf("at level 0 it took %s: the table is not full", took)
	}
	for level := 1; level <= 8; level++ {
		h.hold(level)
		fillUp(t, table)
		h.until("the lane opens", func() bool {
			return slices.ContainsFunc(h.status().Selectors, func(s policy.SelectorStatus) bool {
				return strings.Contains(s.Selector, conntracktest.There4.String()) && s.Stage != "tracked" && s.Stage != "watched"
			})
		})
		for range 3 {
			if took, err := h.connect(time.Second); err != nil {
				t.Errorf("level %d: an operator's new connection took %s: %v", level, took, err)
			}
		}
	}
	h.stop()
}

// connect opens a connection from the peer to port 22 and closes it, and says how long it took to be there.
func (h *host) connect(within time.Duration) (took time.Duration, err error) {
	var c net.Conn
	h.peer.Do(func() {
		began := time.Now()
		c, err = net.DialTimeout("tcp", netip.AddrPortFrom(conntracktest.Here4, 22).String(), within)
		took = time.Since(began)
	})
	if err != nil {
		return took, err
	}
	return took, c.Close()
}

// fillUp makes entries until the kernel has no room for more.
func fillUp(t *testing.T, table *conntrack.Table) {
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
		for i := range uint32(most - now + 64) {
			src := netip.AddrFrom4([4]byte{10, byte((base + i) >> 16), byte((base + i) >> 8), byte(base + i)})
			if !yield(conntrackfill.Flow{Src: src, Dst: dst, Proto: unix.IPPROTO_TCP, SrcPort: uint16(base >> 16), DstPort: 80,
				State: 3, Status: conntrackfill.SeenReply | conntrackfill.Assured, Timeout: 3600}) {
				return
			}
		}
	})
}
