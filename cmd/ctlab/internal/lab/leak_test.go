package lab

import (
	"testing"
	"time"

	"github.com/mdlayher/netlink"
	"github.com/ti-mo/conntrack"

	"ctguard/agent/conntrack/conntracktest"
	"ctguard/cmd/ctlab/internal/measure"
	"ctguard/cmd/ctlab/internal/service"
)

// quietGateway is a gateway under next to no attack.
func quietGateway() Scenario {
	return Scenario{
		Topology: "nat-gateway", Attack: "nat-user", Rate: 10, Background: -1,
		Calm: time.Second, AttackFor: 2 * time.Second, After: 500 * time.Millisecond,
	}.withDefaults()
}

// runWith runs a scenario with a guard that is in no list.
func runWith(t *testing.T, sc Scenario, g guard) *Result {
	t.Helper()
	conntracktest.Privileged(t, "nft")
	r := &run{sc: sc, guard: g}
	r.attack, _ = attackNamed(sc.Attack)
	res, err := r.protectedRun(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return res
}

// A guard that leaves NATed traffic untracked lets inside addresses out, and the lab sees it.
func TestLeaksAreSeen(t *testing.T) {
	res := runWith(t, quietGateway(), passive{rules: `
table ip mistake {
	chain prerouting {
		type filter hook prerouting priority raw; policy accept;
		iifname "cli0" udp dport 5353 notrack
	}
}
`})
	if res.Leaked == nil || *res.Leaked == 0 || len(res.LeakExamples) != leakExamples {
		t.Errorf("%s packets leaked (%q), want every UDP request's", show(res.Leaked), res.LeakExamples)
	}
}

// A gateway that works leaks nothing and resets nobody; on a server nobody looks.
func TestNothingLeaksByItself(t *testing.T) {
	res := runWith(t, quietGateway(), passive{})
	if res.Leaked == nil || *res.Leaked > 0 || res.Lasting.Resets > 0 {
		t.Errorf("%s packets leaked (%q), %d connections were reset, want none", show(res.Leaked), res.LeakExamples,
			res.Lasting.Resets)
	}
	sc := quietGateway()
	sc.Topology, sc.Attack = "server", "handshake"
	if res := runWith(t, sc, passive{}); res.Leaked != nil {
		t.Errorf("%d packets leaked from a server", *res.Leaked)
	}
}

// When the gateway has forgotten a connection and the server speaks first, it answers the server
// with a reset, and the lab sees the loss.
func TestForgottenConnectionsAreLost(t *testing.T) {
	conntracktest.Privileged(t, "nft")
	sc := quietGateway()
	r := &run{sc: sc, guard: passive{}}
	r.attack, _ = attackNamed(sc.Attack)
	forgotten := false
	r.sc.OnSample = func(m measure.Sample) {
		if forgotten || m.Seconds < 0.5 {
			return
		}
		forgotten = true
		conn, err := conntrack.Dial(&netlink.Config{NetNS: r.site.protected.FD()})
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		flows, err := conn.Dump(nil)
		if err != nil {
			t.Error(err)
		}
		for _, f := range flows {
			// Not the others': an answer that is under way in this moment would be lost as well, and count.
			if f.TupleOrig.Proto.DestinationPort == service.SpeakPort {
				if err := conn.Delete(f); err != nil {
					t.Error(err)
				}
			}
		}
	}
	res, err := r.protectedRun(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	// Those that only listen.
	if got := res.Lasting; got.Lost == 0 || got.Lost > got.Opened/2 {
		t.Errorf("%d of %d lasting connections were lost, want some of those that only listen", got.Lost, got.Opened)
	}
}

func show(n *uint64) any {
	if n == nil {
		return "no count of"
	}
	return *n
}
