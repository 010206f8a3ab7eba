package policy

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// crowded is a machine that knows an ordinary day of some users, and a table of 10 000 entries that is full of
// conversations.
type crowded struct {
	m *Machine
	o Observation
}

func newCrowded(usual map[string]int) *crowded {
	c := &crowded{m: New(Defaults(Server)), o: Observation{Capacity: 10_000, Time: dayStart,
		Host: Host{Admin: map[string]int{tcpLoose: 1}}}}
	day := OrdinaryDay{Updated: dayStart, Flows: true, Fitted: 5000, Sources: make(map[Source]*Usual)}
	for p, n := range usual {
		day.Sources[sourceOf(p)] = &Usual{Assured: float64(n)}
	}
	c.m.Recall(day)
	c.tick(nil)
	c.tick(nil)
	return c
}

// tick hands over a census of conversations by source, and what came back.
func (c *crowded) tick(held map[string]int, back ...Comeback) Decision {
	c.o.Time = c.o.Time.Add(time.Second)
	c.o.Count, c.o.Census = 9600, nil
	if held != nil {
		c.o.Census = calmCensus(c.o.Time, held)
		c.o.Census.Comebacks = back
	}
	return c.m.Tick(c.o)
}

func capOf(p Posture, source string) (Cap, bool) {
	for _, c := range p.Caps {
		if c.Prefix == netip.MustParsePrefix(source) {
			return c, true
		}
	}
	return Cap{}, false
}

func limitOf(p Posture, source string) bool {
	for _, l := range p.Limits {
		if l.Prefix == netip.MustParsePrefix(source) {
			return true
		}
	}
	return false
}

// A source whose evicted conversations come back and speak keeps them, is told of, and is limited no longer for them;
// what it opens beyond is its growth as before. One of which next to nothing comes back keeps nothing more.
func TestWhatComesBackIsKept(t *testing.T) {
	const office, bot = "198.51.100.1/32", "203.0.113.1/32"
	c := newCrowded(map[string]int{"192.0.2.1/32": 5000})
	held := map[string]int{"192.0.2.1/32": 5000, office: 1200, bot: 3400}
	d := c.tick(held)
	before, capped := capOf(d.Posture, office)
	if !capped || before.SpareAssured || !limitOf(d.Posture, office) {
		t.Fatalf("nothing is taken: %+v", d.Posture)
	}
	taken := 1200 - before.Keep
	d = c.tick(held, Comeback{sourceOf(office), taken, 64, 48},
		Comeback{sourceOf(bot), taken, 64, 3})
	after, _ := capOf(d.Posture, office)
	bots, _ := capOf(d.Posture, bot)
	if want := 48 * taken / 64; after.Keep < want || after.Keep <= before.Keep {
		t.Errorf("keeps %d of 1200, want %d at least, and more than %d", after.Keep, want, before.Keep)
	}
	if bots.Keep > before.Keep {
		t.Errorf("a source of which 3 of 64 come back keeps %d instead of %d", bots.Keep, before.Keep)
	}
	events := ""
	for _, e := range d.Events {
		events += e.Reason + "\n"
	}
	explained := strings.Join(c.m.Explain(netip.MustParsePrefix(office)), "\n")
	for name, text := range map[string]string{"events": events, "explain": explained} {
		if !strings.Contains(text, "48 of 64 conversations that were evicted came back and speak") {
			t.Errorf("%s say nothing of it:\n%s", name, text)
		}
	}
	if strings.Contains(events, "3 of 64") {
		t.Errorf("events:\n%s", events)
	}
	steps := c.m.Steps()
	if i := slices.IndexFunc(steps, func(s StepStatus) bool { return s.Name == Evict }); !strings.Contains(steps[i].Reason,
		"1 sources keep what came back") {
		t.Errorf("status: %s", steps[i].Reason)
	}

	held[office] = after.Keep // what is left of it is what it keeps
	again := Comeback{sourceOf(office), taken, 64, 48}
	if d = c.tick(held, again); capsBelow(d.Posture, office, held[office]) {
		t.Errorf("what it keeps is taken again: %+v", d.Posture.Caps)
	}
	held[office] = 4000
	if d = c.tick(held, again); !limitOf(d.Posture, office) || !capsBelow(d.Posture, office, 4000) {
		t.Errorf("its growth is free: %+v", d.Posture)
	}
}

func capsBelow(p Posture, source string, n int) bool {
	c, capped := capOf(p, source)
	return capped && c.Keep < n
}

// Bots that hold connections and speak come back as well. All that they have of it is what came back, a tenth of the
// table together: a network of them has no more shares than before, and nobody who is usually here has less.
func TestComebacksAreNoLicence(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const user = "192.0.2.1/32"
		usual := rapid.IntRange(100, 5000).Draw(t, "usual")
		held := map[string]int{user: usual}
		bots := rapid.IntRange(1, 60).Draw(t, "bots")
		for i := range bots {
			network := rapid.IntRange(0, 3).Draw(t, "network")
			held[fmt.Sprintf("198.51.%d.%d/32", network, i)] = rapid.IntRange(4000/bots, 9000/bots).Draw(t, "bot")
		}
		plain, speaking := newCrowded(map[string]int{user: usual}), newCrowded(map[string]int{user: usual})
		var back []Comeback
		for p, n := range held {
			if p != user {
				back = append(back, Comeback{sourceOf(p), n, min(n, 64), min(n, 64)})
			}
		}
		kept := func(p Posture) (sum int) {
			for source, n := range held {
				if most, capped := capOf(p, source); capped {
					n = min(n, most.Keep)
				}
				if source == user && n < usual {
					t.Fatalf("who is usually here keeps %d of %d", n, usual)
				}
				sum += n
			}
			return sum
		}
		without, with := kept(plain.tick(held).Posture), kept(speaking.tick(held, back...).Posture)
		if more := with - without; more > 1000+len(held) {
			t.Fatalf("because everything comes back %d entries more stay: %d, not %d", more, with, without)
		}
	})
}

// Where the conversations of several sources that usually are here come back, evict stands back: all of those may have
// twice as much. Newcomers, whatever comes back of theirs, may not, nor who was here with next to nothing.
func TestEvictStandsBack(t *testing.T) {
	users := []string{"192.0.2.1/32", "192.0.2.2/32", "192.0.2.3/32", "192.0.2.4/32"}
	bots := []string{"198.51.100.1/32", "198.51.101.1/32", "198.51.102.1/32"}
	const sleeper = "198.51.103.1/32"
	for name, one := range map[string]struct {
		back []string
		want bool
	}{"users": {users[:3], true}, "two users": {users[:2], false}, "bots": {bots, false}} {
		usual, held := make(map[string]int), make(map[string]int)
		for _, u := range users {
			usual[u], held[u] = 800, 1500
		}
		for _, b := range bots {
			held[b] = 1200
		}
		usual[sleeper], held[sleeper] = 1, 1200
		c := newCrowded(usual)
		d := c.tick(held)
		plain, _ := capOf(d.Posture, sleeper)
		if !takes(d.Posture, users[3]) || !takes(d.Posture, bots[0]) {
			t.Fatalf("%s: nobody's growth is taken: %+v", name, d.Posture)
		}
		var back []Comeback
		for _, p := range one.back {
			back = append(back, Comeback{sourceOf(p), 10, 10, 9})
		}
		d = c.tick(held, back...)
		if stood := !takes(d.Posture, users[3]); stood != one.want || !takes(d.Posture, bots[0]) {
			t.Errorf("%s: stands back %v; takes of newcomers %v", name, stood, takes(d.Posture, bots[0]))
		}
		if slept, _ := capOf(d.Posture, sleeper); slept.Keep > plain.Keep || !limitOf(d.Posture, sleeper) {
			t.Errorf("%s: who was here with one entry keeps %d, not %d", name, slept.Keep, plain.Keep)
		}
		c.o.Time = c.o.Time.Add(standBackFor)
		if d = c.tick(held); one.want && !takes(d.Posture, users[3]) {
			t.Errorf("%s: it stands back for ever", name)
		}
	}
}

// takes reports whether conversations of a source go.
func takes(p Posture, source string) bool {
	c, capped := capOf(p, source)
	return capped && !c.SpareAssured
}
