package nft

import (
	"slices"
	"strings"
	"testing"

	"ctguard/policy"
)

// TestBetweenLooks: what becomes of packets is not counted, and all else is as in a look: what is freed and what is on
// trial has no entries, and the rest has.
func TestBetweenLooks(t *testing.T) {
	l := newLink(t)
	for _, port := range []int{80, 443, 8080} {
		l.serve(port)
	}
	table := open(t)
	d := untrack("tcp/80", "udp/80", "echo", "tcp/80 at 192.0.2.99/32")
	d.Posture.Notrack = append(d.Posture.Notrack, tracked(policy.Trial, "tcp/443", "udp/443")...)
	d.Posture.Notrack = append(d.Posture.Notrack, tracked(policy.Watched, "tcp/8080", "udp/8080")...)
	d.Posture.Uncounted = true
	apply(t, table, d)
	const connections, rounds = 3, 4
	for range connections {
		for _, network := range []string{"tcp", "udp"} {
			for _, from := range []string{client2, client6} {
				c, tried := l.mustDial(network, from, 80), l.mustDial(network, from, 443)
				for range rounds {
					mustEcho(t, c)
					mustEcho(t, tried)
				}
			}
		}
	}
	l.pingHost()
	wantEntries(t, client2, 0)
	wantEntries(t, client6, 0)
	w := work(t, table)
	if want := uint64(2*connections + 2*connections*rounds); w.FreedOpened != want {
		t.Errorf("%d flows opened, want %d: each TCP connection and each datagram", w.FreedOpened, want)
	}
	for s, one := range w.Selectors {
		tried := slices.Contains([]string{"tcp/443", "udp/443", "echo"}, s.String())
		if (one.Asked > 0) != tried || one.Requests+one.Delivered+one.Replies+one.Sent > 0 {
			t.Errorf("%s: %+v, want only that somebody asked", s, one)
		}
	}
	mustEcho(t, l.mustDial("tcp", client2, 8080))
	wantEntries(t, client2, 1)

	d.Posture.Uncounted = false
	apply(t, table, d)
	mustEcho(t, l.mustDial("tcp", client3, 80))
	mustEcho(t, l.mustDial("udp", client3, 443))
	wantEntries(t, client3, 0)
	w = work(t, table)
	for _, name := range []string{"tcp/80", "udp/443"} {
		if one := w.Selectors[selector(name)]; one.Requests == 0 || one.Requests != one.Delivered || one.Replies == 0 ||
			one.Replies != one.Sent {
			t.Errorf("%s in a look: %+v, want all to pass", name, one)
		}
	}
}

// TestIdleHooks: hooks cost every packet something, so between looks there is none that has nothing to do.
func TestIdleHooks(t *testing.T) {
	inNewNetNS(t)
	table := open(t)
	hooks := func() int { return strings.Count(run(t, "nft list table inet ctguard"), " hook ") }
	d := Desired{Posture: policy.Posture{Notrack: tracked(policy.Watched, "tcp/80")}}
	for _, step := range []struct {
		uncounted bool
		stage     policy.Stage
		hooks     int
	}{{false, policy.Watched, 4}, {true, policy.Watched, 0}, {true, policy.Freed, 2}, {false, policy.Freed, 4},
		{true, policy.Freed, 2}} {
		d.Posture.Uncounted, d.Posture.Notrack[0].Stage = step.uncounted, step.stage
		apply(t, table, d)
		if got := hooks(); got != step.hooks {
			t.Errorf("uncounted %v, %s: %d hooks, want %d", step.uncounted, step.stage, got, step.hooks)
		}
		intact(t, table, true)
	}
}
