package main

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ctguard/agent/conntrack"
	"ctguard/agent/conntrack/conntrackfill"
	"ctguard/agent/conntrack/conntracktest"
	"ctguard/agent/state"
	"ctguard/policy"
)

// spared are sources that must never be limited or lose a conversation, each for a reason of its own.
type spared struct {
	listed, gateway, resolver, operator, own netip.Addr
}

func (s spared) all() []netip.Addr {
	return []netip.Addr{s.listed, s.gateway, s.resolver, s.operator, s.own}
}

// With random configurations, levels and floods, in which those who must be spared hold more than anybody else, none of
// them is ever in a set that limits or loses an entry that carries a conversation. CTGUARD_SPARED_CASES says how many
// cases are tried, CTGUARD_SPARED_SEED which.
func TestWhoIsSpared(t *testing.T) {
	if testing.Short() {
		t.Skip("it takes a quarter of a minute")
	}
	cases, seed := 15, uint64(time.Now().UnixNano())
	if n, err := strconv.Atoi(os.Getenv("CTGUARD_SPARED_CASES")); err == nil {
		cases = n
	}
	if n, err := strconv.ParseUint(os.Getenv("CTGUARD_SPARED_SEED"), 10, 64); err == nil {
		seed = n
	}
	t.Logf("CTGUARD_SPARED_SEED=%d", seed)
	h := newHost(t)
	s := newSpared(h)
	r := rand.New(rand.NewPCG(seed, 0))
	limited, evicted := 0, uint64(0)
	for n := range cases {
		l, e := h.tryFlood(s, r)
		limited, evicted = limited+l, evicted+e
		if t.Failed() {
			t.Fatalf("case %d", n)
		}
	}
	t.Logf("%d cases, %d sources limited, %d entries evicted", cases, limited, evicted)
	if limited == 0 || evicted == 0 {
		t.Error("nobody was limited or evicted: this shows nothing")
	}
}

// newSpared gives the host a gateway, a resolver and an operator who logged in before it starts.
func newSpared(h *host) spared {
	h.Helper()
	s := spared{listed: netip.MustParseAddr("198.51.100.7"), gateway: netip.MustParseAddr("192.0.2.3"),
		resolver: netip.MustParseAddr("198.51.100.53"), operator: conntracktest.There4, own: conntracktest.Here4}
	if err := ip("route add default via " + s.gateway.String()); err != nil {
		h.Fatal(err)
	}
	// A resolv.conf of the test's own, in a mount namespace that ends with its thread.
	resolv := h.dir + "/resolv.conf"
	if err := os.WriteFile(resolv, []byte("nameserver "+s.resolver.String()+"\n"), 0o644); err != nil {
		h.Fatal(err)
	}
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		h.Fatal(err)
	}
	if err := unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""); err != nil {
		h.Fatal(err)
	}
	if err := unix.Mount(resolv, "/etc/resolv.conf", "", unix.MS_BIND, ""); err != nil {
		h.Fatal(err)
	}
	c := h.converse(22)
	local, remote := netip.MustParseAddrPort(c.RemoteAddr().String()), netip.MustParseAddrPort(c.LocalAddr().String())
	now := time.Now()
	if err := state.At(h.state).KeepLogins([]state.Login{{Local: local, Remote: remote, Since: now.Add(-time.Hour)}},
		now); err != nil {
		h.Fatal(err)
	}
	return s
}

// tryFlood goes through one case and says how many sources were limited and how many entries evicted.
func (h *host) tryFlood(s spared, r *rand.Rand) (limited int, evicted uint64) {
	h.Helper()
	profile := []string{"auto", "server", "nat-gateway"}[r.IntN(3)]
	text := fmt.Sprintf("profile = %q\nsocket = %q\nstate_dir = %q\nallow = [%q]\n[table]\ncapacity = %d\n", profile,
		h.dir+"/ctguard.sock", h.state, netip.PrefixFrom(s.listed, 32-r.IntN(3)).Masked(), capacity)
	top := len(policy.StepNames())
	for _, step := range []policy.StepName{policy.Notrack, policy.Synproxy, policy.Tighten, policy.Admit} {
		if r.IntN(4) == 0 {
			text += fmt.Sprintf("[steps.%s]\nenabled = false\n", step)
			top-- // one step less is on the ladder
		}
	}
	if err := os.WriteFile(h.config, []byte(text), 0o644); err != nil {
		h.Fatal(err)
	}
	conversations := h.flood(s, r)
	if r.IntN(3) > 0 {
		// Strangers that were not here on an ordinary day lose conversations, too. Those who must be spared were not either.
		day := policy.OrdinaryDay{Learnt: time.Hour, Updated: time.Now(), Fitted: capacity, Flows: true}
		if err := state.At(h.state).KeepDayNow(&day); err != nil {
			h.Fatal(err)
		}
	}
	h.start()
	level := 0
	if r.IntN(2) == 0 {
		level = top - r.IntN(2)
		h.hold(level)
	}
	// It goes on as long as it likes: this is looked at, not waited for.
	var after uint64
	for end := time.Now().Add(time.Duration(200+r.IntN(400)) * time.Millisecond); time.Now().Before(end); {
		time.Sleep(20 * time.Millisecond)
		status := h.status()
		limited, after = max(limited, len(status.Limited)), max(after, status.Evicted)
		for _, l := range status.Limited {
			for _, addr := range s.all() {
				if l.Prefix.Contains(addr) && !h.allowFirst(addr) {
					h.Errorf("%s is limited as %s: %s\n%s", addr, l.Prefix, l.Reason, text)
				}
			}
		}
	}
	h.inSets(s, text)
	left := h.left()
	for _, addr := range s.all() {
		if left[addr] < conversations[addr] {
			h.Errorf("%s has %d of its %d conversations left, held at %d\n%s%s", addr, left[addr], conversations[addr], level,
				text, h.log)
		}
	}
	h.stop()
	_ = os.Remove(h.state + "/operator.json")
	_ = os.Remove(h.state + "/ordinary.json")
	h.evictAll(s)
	return limited, after
}

// allowFirst reports whether the daemon has an address on its allowlist, which its rules ask first.
func (h *host) allowFirst(addr netip.Addr) bool {
	return slices.ContainsFunc(h.status().Allow, func(p netip.Prefix) bool { return p.Contains(addr) })
}

// flood makes conversations of those who must be spared and of strangers, up to more than the capacity, and returns how
// many each of the former holds.
func (h *host) flood(s spared, r *rand.Rand) map[netip.Addr]int {
	h.Helper()
	holds := make(map[netip.Addr]int)
	var flows []conntrackfill.Flow
	dst := netip.MustParseAddr("203.0.113.200")
	const established, synSent, conversation = 3, 1, conntrackfill.SeenReply | conntrackfill.Assured
	add := func(src netip.Addr, n int, flow conntrackfill.Flow) {
		for range n {
			flow.Src, flow.Dst, flow.Proto, flow.DstPort = src, dst, unix.IPPROTO_TCP, 443
			flow.SrcPort = uint16(2000 + len(flows))
			flows = append(flows, flow)
		}
	}
	for _, addr := range s.all() {
		holds[addr] = 20 + r.IntN(180)
		add(addr, holds[addr], conntrackfill.Flow{State: established, Status: conversation, Timeout: 400_000})
	}
	sources := 1 + r.IntN(20)
	for i := range sources {
		stranger := netip.AddrFrom4([4]byte{203, 0, 113, byte(1 + i)})
		add(stranger, capacity/2/sources, conntrackfill.Flow{State: established, Status: conversation,
			Timeout: uint32(300 + r.IntN(400_000))})
		add(stranger, capacity/2/sources, conntrackfill.Flow{State: synSent, Timeout: uint32(60 + r.IntN(60))})
	}
	made, err := conntrackfill.Fill(slices.Values(flows))
	if err != nil || made != len(flows) {
		h.Fatalf("%d of %d entries: %v", made, len(flows), err)
	}
	return holds
}

// inSets looks for those who must be spared among the elements of the sets that limit.
func (h *host) inSets(s spared, text string) {
	h.Helper()
	for _, set := range []string{"blocked4", "limited4"} {
		for _, addr := range s.all() {
			out, err := exec.Command("nft", "get", "element", "inet", "ctguard", set, "{ "+addr.String()+" }").CombinedOutput()
			if err == nil {
				h.Errorf("%s is in set %s: %s\n%s", addr, set, out, text)
			} else if strings.Contains(string(out), "syntax") {
				h.Fatalf("%s", out)
			}
		}
	}
}

// left counts the entries that each of those who must be spared has.
func (h *host) left() map[netip.Addr]int {
	h.Helper()
	table, err := conntrack.Open()
	if err != nil {
		h.Fatal(err)
	}
	defer table.Close()
	left := make(map[netip.Addr]int)
	if err := table.Entries(h.Context(), conntrack.EntryFilter{}, func(e conntrack.Entry) bool {
		left[e.Source.Addr()]++
		return true
	}); err != nil {
		h.Fatal(err)
	}
	return left
}

// evictAll empties the table of what flood made.
func (h *host) evictAll(s spared) {
	h.Helper()
	table, err := conntrack.Open()
	if err != nil {
		h.Fatal(err)
	}
	defer table.Close()
	listed, own := netip.PrefixFrom(s.listed, 24).Masked(), netip.PrefixFrom(s.own, 24).Masked()
	for _, prefix := range []netip.Prefix{crowd, listed, own} {
		of := conntrack.EntryFilter{Source: prefix}
		if _, err := table.Remove(h.Context(), of, nil, false, nil); err != nil {
			h.Fatal(err)
		}
	}
}
