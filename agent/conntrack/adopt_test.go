package conntrack

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/time/rate"

	"ctguard/agent/conntrack/conntracktest"
	"ctguard/agent/survey"
	"ctguard/policy"
)

// adoptPort is the port of the service that lives untracked.
const adoptPort = 8080

// strict is a ruleset that lets nothing pass which conntrack can't place, once notrack is gone.
const strict = `table inet strict {
	chain in {
		type filter hook input priority filter; policy drop;
		ct state invalid drop
		ct state established accept
		tcp flags & (fin|syn|rst|ack) != syn ct state new drop
		tcp dport 8080 accept
		ct state untracked accept
	}
	chain out {
		type filter hook output priority filter; policy drop;
		ct state established,untracked accept
	}
}
table inet untrack {
	chain pre {
		type filter hook prerouting priority raw;
		tcp dport 8080 notrack
	}
	chain out {
		type filter hook output priority raw;
		tcp sport 8080 notrack
	}
}
`

// pipe is one connection, by both of its ends.
type pipe struct{ here, there net.Conn }

// strictHost makes a host with an untracked service and strict rules, and connections to it from a
// peer: an idle and a busy one over each family.
func strictHost(t *testing.T) (*Table, map[string]pipe) {
	t.Helper()
	table, peer := openTable(t), newPeer(t)
	rules := filepath.Join(t.TempDir(), "rules")
	if err := os.WriteFile(rules, []byte(strict), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(sysctlRoot+"nf_conntrack_tcp_loose", []byte("0"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := conntracktest.Run("nft -f " + rules); err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", fmt.Sprint(":", adoptPort))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	pipes := make(map[string]pipe)
	for name, to := range map[string]netip.Addr{
		"idle": conntracktest.Here4, "busy": conntracktest.Here4, "idle over IPv6": conntracktest.Here6,
		"busy over IPv6": conntracktest.Here6,
	} {
		var p pipe
		peer.Do(func() {
			p.there, err = (&net.Dialer{Timeout: 5 * time.Second}).Dial("tcp", netip.AddrPortFrom(to, adoptPort).String())
		})
		if err != nil {
			t.Fatal(err)
		}
		if p.here, err = listener.Accept(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { p.here.Close(); p.there.Close() })
		pipes[name] = p
	}
	return table, pipes
}

// live are the host's connections as an agent would find them.
func live(t *testing.T) (flows []Flow) {
	t.Helper()
	list, err := survey.New("/").Established(map[uint16]bool{adoptPort: true}, 1000)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range list {
		flows = append(flows, Flow{c.Local, c.Remote, c.Outgoing, c.Scales.Agreed, c.Scales.Local, c.Scales.Remote})
	}
	return flows
}

// carry sends n bytes each way at once and waits until they are there.
func (p pipe) carry(n int64, patience time.Duration) error {
	one := func(from, to net.Conn, result chan<- error) {
		deadline := time.Now().Add(patience)
		_, _ = from.SetWriteDeadline(deadline), to.SetReadDeadline(deadline)
		go func() { _, _ = from.Write(make([]byte, n)) }()
		_, err := io.CopyN(io.Discard, to, n)
		result <- err
	}
	result := make(chan error, 2)
	go one(p.here, p.there, result)
	go one(p.there, p.here, result)
	return errors.Join(<-result, <-result)
}

const (
	plenty    = 300 << 10 // more than a window
	longer    = 20 * time.Second
	shortTime = 500 * time.Millisecond
)

// Connections that lived untracked go on after Adopt, whether data was on its way or not.
func TestAdopt(t *testing.T) {
	table, pipes := strictHost(t)
	busy := make(chan error, len(pipes))
	for name, p := range pipes {
		if name[:4] == "busy" {
			go func() { busy <- p.carry(200*plenty, longer) }()
		}
	}
	time.Sleep(20 * time.Millisecond) // the data is on its way
	if n, err := table.Count(); err != nil || n != 0 {
		t.Fatalf("%d entries (%v) of an untracked service", n, err)
	}
	created, err := table.Adopt(t.Context(), live(t), nil)
	if err != nil || created != len(pipes) {
		t.Fatalf("adopted %d (%v), want %d", created, err, len(pipes))
	}
	if err := conntracktest.Run("nft delete table inet untrack"); err != nil {
		t.Fatal(err)
	}
	again, err := table.Adopt(t.Context(), live(t), nil)
	if err != nil || again != 0 {
		t.Errorf("adopted %d again (%v)", again, err)
	}
	for range 2 {
		if err := <-busy; err != nil {
			t.Errorf("while data was on its way: %v", err)
		}
	}
	for name, p := range pipes {
		if err := p.carry(plenty, longer); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, e := range settled(t, table) {
		const status = statusConfirmed | statusSeenReply | statusAssured
		// When a packet is seen before the rules are gone for the next ones, and more than a window goes by untracked, the
		// kernel takes no acknowledgement in any more (tcp_in_window in net/netfilter/nf_conntrack_proto_tcp.c): the entry
		// passes everything, and lives as long as one that waits for an acknowledgement.
		lives := e.timeout >= 400_000 || e.unacked() && e.timeout > 290
		if e.orig.dstPort != adoptPort || e.state != tcpEstablished || e.status&status != status || !lives {
			t.Errorf("entry to port %d: state %d, status %#x, %d seconds left", e.orig.dstPort, e.state, e.status, e.timeout)
		}
	}
	if n, err := table.Count(); err != nil || n != len(pipes) {
		t.Errorf("%d entries (%v), want one for each of %d connections", n, err, len(pipes))
	}
}

// So do those that have an entry of before, whose windows moved on while they lived untracked.
func TestAdoptEntriesOfBefore(t *testing.T) {
	table, pipes := strictHost(t)
	carry := func(when string, patience time.Duration) (failed int) {
		t.Helper()
		for name, p := range pipes {
			if err := p.carry(plenty, patience); err != nil {
				failed++
				t.Logf("%s: %s: %v", when, name, err)
			}
		}
		return failed
	}
	run := func(commands ...string) {
		t.Helper()
		if err := conntracktest.Run(commands...); err != nil {
			t.Fatal(err)
		}
	}
	adopt := func() {
		t.Helper()
		if _, err := table.Adopt(t.Context(), live(t), nil); err != nil {
			t.Fatal(err)
		}
	}
	adopt()
	run("nft delete chain inet untrack pre", "nft delete chain inet untrack out")
	if failed := carry("tracked", longer); failed > 0 {
		t.Fatal("the connections do not live")
	}
	checkWindows(t, table)
	if failed := carry("with windows", longer); failed > 0 {
		t.Fatal("the connections do not live")
	}
	run("nft add chain inet untrack pre { type filter hook prerouting priority raw; }",
		"nft add chain inet untrack out { type filter hook output priority raw; }",
		"nft add rule inet untrack pre tcp dport 8080 notrack", "nft add rule inet untrack out tcp sport 8080 notrack")
	if failed := carry("untracked", longer); failed > 0 {
		t.Fatal("the connections do not live")
	}
	run("nft delete table inet untrack")
	if failed := carry("tracked again", shortTime); failed == 0 {
		t.Error("they go on by themselves: this shows nothing")
	}
	adopt()
	for name, p := range pipes {
		if err := p.carry(1, longer); err != nil {
			t.Errorf("%s, adopted: %v", name, err)
		}
	}
}

// checkWindows has all entries check windows.
func checkWindows(t *testing.T, table *Table) {
	t.Helper()
	_, err := table.change(t.Context(), msgNew, nil, func(queue *changes) error {
		for _, f := range live(t) {
			from, to := f.ends()
			queue.add(familyOf(f.Remote.Addr()), appendWindows(appendTuple(nil, attrTupleOrig, protoTCP, from, to), 0))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// settled returns the entries when no data waits for its acknowledgement any more, or after a while.
func settled(t *testing.T, table *Table) (entries []entry) {
	t.Helper()
	waits := func(e entry) bool { return e.unacked() }
	for range 50 {
		if entries = dump(t, table); !slices.ContainsFunc(entries, waits) {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	return entries
}

// Without Adopt they don't.
func TestUntrackedConnectionsDie(t *testing.T) {
	_, pipes := strictHost(t)
	for name, p := range pipes {
		if err := p.carry(plenty, longer); err != nil {
			t.Errorf("%s, untracked: %v", name, err)
		}
	}
	if err := conntracktest.Run("nft delete table inet untrack"); err != nil {
		t.Fatal(err)
	}
	for name, p := range pipes {
		if err := p.carry(1, shortTime); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s goes on by itself (%v): the test above shows nothing", name, err)
		}
	}
}

// Entries have the namespace's own timeout, keep to the rate, and one refusal costs no other entry.
func TestAdoptMany(t *testing.T) {
	table := openTable(t)
	if err := os.WriteFile(sysctlRoot+tcpTimeout+"established", []byte("5000"), 0o600); err != nil {
		t.Fatal(err)
	}
	const many = 1000
	flows := []Flow{{}}
	for i := range uint16(many) {
		local, remote := netip.AddrPortFrom(addr("198.51.100.1"), 80), netip.AddrPortFrom(addr("192.0.2.1"), 1024+i)
		if i%2 == 1 {
			local, remote = netip.AddrPortFrom(addr("2001:db8::1"), 80), netip.AddrPortFrom(addr("2001:db8::2"), 1024+i)
		}
		flows = append(flows, Flow{Local: local, Remote: remote})
	}
	start := time.Now()
	created, err := table.Adopt(t.Context(), flows, rate.NewLimiter(5*many, 16))
	if created != many || err == nil || !strings.Contains(err.Error(), "1 of 1001 connections refused") {
		t.Errorf("created %d (%v), want %d and a refusal", created, err, many)
	}
	if took := time.Since(start); took < 150*time.Millisecond {
		t.Errorf("%d entries in %v are above the rate", many, took)
	}
	for _, e := range dump(t, table) {
		if e.timeout > 5000 || e.timeout < 4990 || e.translated() {
			t.Fatalf("entry with %d seconds left, translated %v", e.timeout, e.translated())
		}
	}
	if created, err := table.Adopt(t.Context(), flows[1:], nil); created != 0 || err != nil {
		t.Errorf("created %d again (%v)", created, err)
	}
}

// UDP flows to inside hosts get as long to be silent as the administrator gives them.
func TestAdoptForwardedDatagrams(t *testing.T) {
	table := openTable(t)
	if err := os.WriteFile(sysctlRoot+"nf_conntrack_udp_timeout_stream", []byte("3600"), 0o600); err != nil {
		t.Fatal(err)
	}
	phone := ForwardedFlow{Client: netip.MustParseAddrPort("192.0.2.1:5060"),
		Outside: netip.MustParseAddrPort("203.0.113.1:5060"), Inside: netip.MustParseAddrPort("198.51.100.1:5060"), UDP: true}
	if n, err := table.AdoptForwarded(t.Context(), []ForwardedFlow{phone}, nil); err != nil || n != 1 {
		t.Fatalf("adopted %d (%v)", n, err)
	}
	for _, e := range dump(t, table) {
		if e.timeout < 3590 || e.timeout > 3600 || !e.translated() || e.class(false) != policy.Assured {
			t.Errorf("%d seconds left, translated %v, %v", e.timeout, e.translated(), e.class(false))
		}
	}
}
