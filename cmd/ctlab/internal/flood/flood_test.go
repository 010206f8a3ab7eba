package flood

import (
	"context"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"ctguard/agent/conntrack/conntracktest"
	"ctguard/cmd/ctlab/internal/ns"
	"ctguard/cmd/ctlab/internal/packet"
	"ctguard/cmd/ctlab/internal/role"
)

func goodSpec() Spec {
	return Spec{
		Kind: SYN, Interface: "eth0", Rate: 100, Duration: time.Second, Forbidden: "net:[1]",
		Sources: netip.MustParsePrefix("198.18.0.0/16"),
		Targets: []netip.AddrPort{netip.MustParseAddrPort("203.0.113.1:80")},
	}
}

func TestSpecRefusesWhatIsNotSafe(t *testing.T) {
	own, err := ns.Current()
	if err != nil {
		t.Fatal(err)
	}
	ok := goodSpec()
	if err := ok.check(); err != nil {
		t.Fatalf("a good specification is refused: %v", err)
	}
	for name, tc := range map[string]struct {
		change func(*Spec)
		want   string
	}{
		"own namespace":     {func(s *Spec) { s.Forbidden = own }, "namespace that ctlab was started in"},
		"unnamed namespace": {func(s *Spec) { s.Forbidden = "" }, "namespace that ctlab was started in"},
		"real source":       {func(s *Spec) { s.Sources = netip.MustParsePrefix("10.0.0.0/8") }, "refusing to send from"},
		"real target": {func(s *Spec) {
			s.Targets = []netip.AddrPort{netip.MustParseAddrPort("192.168.1.1:80")}
		}, "refusing to send to"},
		"too many ports": {func(s *Spec) { s.TargetPorts = 1 << 16 }, "ports above it"},
		"no target":      {func(s *Spec) { s.Targets = nil }, "no target"},
		"no end":         {func(s *Spec) { s.Duration = 0 }, "above zero"},
		"mixed families": {func(s *Spec) { s.Sources = netip.MustParsePrefix("2001:db8::/48") }, "families"},
	} {
		s := goodSpec()
		tc.change(&s)
		if err := s.check(); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: error is %v, want one with %q", name, err, tc.want)
		}
	}
}

func TestSpecIsBounded(t *testing.T) {
	s := goodSpec()
	s.Limit = 1 << 60
	if err := s.check(); err != nil || s.Limit != maxPackets {
		t.Errorf("limit is %d, error %v; want %d", s.Limit, err, maxPackets)
	}
}

func TestTuplesAreDistinct(t *testing.T) {
	for _, p := range []string{"198.18.0.0/16", "2001:db8:a000::/48"} {
		prefix := netip.MustParsePrefix(p)
		tu := newTuples(prefix, 200, 0)
		seen := map[netip.AddrPort]bool{}
		sources := map[netip.Addr]bool{}
		for range 60000 {
			a, port := tu.take()
			seen[netip.AddrPortFrom(a, port)] = true
			sources[a] = true
			if !prefix.Contains(a) {
				t.Fatalf("%v is outside of %v", a, prefix)
			}
		}
		if len(seen) != 60000 || len(sources) != 200 {
			t.Errorf("%s: %d tuples of %d sources, want 60000 of 200", p, len(seen), len(sources))
		}
	}
}

func TestTuplesComeAgain(t *testing.T) {
	tu := newTuples(netip.MustParsePrefix("198.18.0.0/16"), 10, 3)
	seen := map[netip.AddrPort]bool{}
	for range 300 {
		seen[netip.AddrPortFrom(tu.take())] = true
	}
	if len(seen) != 30 {
		t.Errorf("%d flows, want 10 sources with 3 each", len(seen))
	}
}

func TestRandomTuplesStayInside(t *testing.T) {
	for _, p := range []string{"198.18.0.0/16", "2001:db8:a000::/48"} {
		prefix := netip.MustParsePrefix(p)
		tu := newTuples(prefix, 0, 0)
		for range 10000 {
			if a, _ := tu.take(); !prefix.Contains(a) {
				t.Fatalf("%v is outside of %v", a, prefix)
			}
		}
	}
}

func TestTargets(t *testing.T) {
	s := goodSpec()
	s.Targets = append(s.Targets, netip.MustParseAddrPort("203.0.113.2:90"))
	if got := targetsOf(s, 100); len(got) != 2 {
		t.Errorf("packets go to %v, want to the two targets in turn", got)
	}
	s.TargetPorts = 3
	for to := range targetsOf(s, 1000) {
		own := s.Targets[0].Port()
		if to.Addr() == s.Targets[1].Addr() {
			own = s.Targets[1].Port()
		}
		if to.Port() < own || to.Port() >= own+3 {
			t.Errorf("a packet goes to %s", to)
		}
	}
	if got := targetsOf(s, 1000); len(got) != 6 {
		t.Errorf("packets go to %d ports, want three of each target", len(got))
	}
}

func targetsOf(s Spec, n int) map[netip.AddrPort]bool {
	out, to := map[netip.AddrPort]bool{}, newTargets(s)
	for range n {
		out[netip.AddrPortFrom(to.take())] = true
	}
	return out
}

func TestActiveTimeOfPulses(t *testing.T) {
	f := flooder{spec: Spec{On: 4 * time.Second, Off: 6 * time.Second}}
	for in, want := range map[time.Duration]time.Duration{
		time.Second: time.Second, 5 * time.Second: 4 * time.Second, 11 * time.Second: 5 * time.Second,
		29 * time.Second: 12 * time.Second,
	} {
		if got := f.active(in); got != want {
			t.Errorf("active time in %v is %v, want %v", in, got, want)
		}
	}
}

// wire is a pair of namespaces with an attacker's end that has no address.
func wire(t *testing.T) (attacker, victim *ns.Namespace) {
	t.Helper()
	conntracktest.Privileged(t)
	var err error
	if attacker, err = ns.New("attacker"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(attacker.Close)
	if victim, err = ns.New("victim"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(victim.Close)
	mac := net.HardwareAddr{2, 0, 0, 0, 0, 2}
	err = ns.Pair(ns.End{NS: attacker, Name: "eth0", MAC: mac}, ns.End{
		NS: victim, Name: "eth0", MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1},
		Addrs: []netip.Prefix{netip.MustParsePrefix("203.0.113.1/24"), netip.MustParsePrefix("2001:db8::1/64")},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range []ns.Route{
		{Dst: netip.MustParsePrefix("198.18.0.0/16"), Via: netip.MustParseAddr("203.0.113.2")},
		{Dst: netip.MustParsePrefix("2001:db8:a000::/48"), Via: netip.MustParseAddr("2001:db8::2")},
	} {
		r.Dev, r.GatewayMAC = "eth0", mac
		if err := victim.AddRoute(r); err != nil {
			t.Fatal(err)
		}
	}
	return attacker, victim
}

// send runs a flood of exactly limit packets from the attacker.
func send(t *testing.T, attacker *ns.Namespace, kind Kind, target, sources string, limit uint64) Result {
	t.Helper()
	spec := Spec{
		Kind: kind, Interface: "eth0", GatewayMAC: packet.MAC{2, 0, 0, 0, 0, 1},
		Targets: []netip.AddrPort{netip.MustParseAddrPort(target)},
		Sources: netip.MustParsePrefix(sources), Count: 20, Rate: 1000, Duration: 30 * time.Second, Limit: limit,
	}
	var f *flooder
	err := attacker.Do(func() (err error) {
		f, err = open(spec)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return f.run(context.Background(), role.Now())
}

// The kernel drops what has a wrong checksum, and counts it: what arrives at a
// socket was built right.
func TestUDPArrives(t *testing.T) {
	attacker, victim := wire(t)
	for target, sources := range map[string]string{
		"203.0.113.1:5353": "198.18.0.0/16", "[2001:db8::1]:5353": "2001:db8:a000::/48",
	} {
		var conn net.PacketConn
		err := victim.Do(func() (err error) {
			conn, err = net.ListenPacket("udp", target)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		if res := send(t, attacker, UDP, target, sources, 50); res.Sent != 50 || res.Errors != 0 {
			t.Errorf("%s: sent %d with %d errors, want 50", target, res.Sent, res.Errors)
		}
		buf := make([]byte, 2048)
		for i := range 50 {
			if err := conn.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
				t.Fatal(err)
			}
			if _, _, err := conn.ReadFrom(buf); err != nil {
				t.Fatalf("%s: datagram %d: %v", target, i, err)
			}
		}
		_ = conn.Close()
	}
}

func TestHandshakesComplete(t *testing.T) {
	attacker, victim := wire(t)
	for target, sources := range map[string]string{
		"203.0.113.1:80": "198.18.0.0/16", "[2001:db8::1]:80": "2001:db8:a000::/48",
	} {
		var l net.Listener
		err := victim.Do(func() (err error) {
			l, err = net.Listen("tcp", target)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		accepted := make(chan net.Conn, 100)
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				accepted <- c
			}
		}()
		if res := send(t, attacker, Handshake, target, sources, 50); res.Completed != 50 {
			t.Errorf("%s: completed %d handshakes of %d, want 50", target, res.Completed, res.Sent)
		}
		for i := range 50 {
			select {
			case c := <-accepted:
				_ = c.Close()
			case <-time.After(10 * time.Second):
				t.Fatalf("%s: connection %d was not accepted", target, i)
			}
		}
		_ = l.Close()
	}
}

// The attacker's kernel must stay silent: a reset would take the entries out of the table.
func TestAttackersKernelSendsNoReset(t *testing.T) {
	attacker, victim := wire(t)
	err := victim.Do(func() error {
		_, err := net.Listen("tcp", "203.0.113.1:80") // open until the namespace ends
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if res := send(t, attacker, Handshake, "203.0.113.1:80", "198.18.0.0/16", 50); res.Completed != 50 {
		t.Fatalf("completed %d handshakes, want 50", res.Completed)
	}
	if n := estabResets(t, attacker) + estabResets(t, victim); n != 0 {
		t.Errorf("%d resets were sent or received, want none", n)
	}
}

// estabResets is how many connections ended by reset, and how many resets were sent.
func estabResets(t *testing.T, n *ns.Namespace) int {
	t.Helper()
	total := 0
	err := n.Do(func() error {
		b, err := os.ReadFile("/proc/thread-self/net/snmp")
		if err != nil {
			return err
		}
		var names []string
		for line := range strings.Lines(string(b)) {
			f := strings.Fields(line)
			if f[0] != "Tcp:" {
				continue
			}
			if names == nil {
				names = f
				continue
			}
			for i, name := range names {
				if name == "EstabResets" || name == "OutRsts" {
					v, err := strconv.Atoi(f[i])
					if err != nil {
						return err
					}
					total += v
				}
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return total
}
