package policy

import (
	"strings"
	"testing"
	"time"
)

// trialHost plays a host whose rules drop, of what is untracked, the packets of some selectors.
type trialHost struct {
	t       *testing.T
	u       trials
	o       Observation
	drops   map[string]bool
	idle    map[string]bool
	unheard bool // nothing that the host asks for gets through
}

func newTrialHost(t *testing.T, services ...string) *trialHost {
	h := &trialHost{t: t, drops: map[string]bool{}, idle: map[string]bool{}}
	h.o = Observation{Time: time.Unix(1000, 0), Host: Host{Admin: map[string]int{tcpLoose: 1}},
		Work: Work{Selectors: map[Selector]SelectorWork{}}}
	for _, name := range services {
		h.o.Services = append(h.o.Services, parsed(t, name))
	}
	return h
}

// pass lets time pass, with ten packets a tick to and from each selector, and returns the stages.
func (h *trialHost) pass(d time.Duration) (stages map[string]string, told string) {
	c := Defaults(Server)
	for end := h.o.Time.Add(d); h.o.Time.Before(end); h.o.Time = h.o.Time.Add(50 * time.Millisecond) {
		wanted, events := h.u.update(h.o, c, h.o.Services, func(Selector) bool { return true })
		counts := h.u.counts(h.o, c)
		stages = map[string]string{}
		for _, e := range events {
			told += e.Reason + "\n"
		}
		for _, n := range wanted {
			name := n.Selector.String()
			stages[name] = n.Stage.String()
			w := h.o.Work.Selectors[n.Selector]
			if !counts && !n.Selector.Forwarded() {
				h.passUncounted(n, &w)
				continue
			}
			if !h.idle[name] {
				w.Requests, w.New, w.Replies, w.Sent = w.Requests+10, w.New+1, w.Replies+10, w.Sent+10
				if n.Stage == Watched || !h.drops[name] {
					w.Delivered += 10
				}
			}
			if n.Selector.Whole() && h.o.Time.UnixMilli()%1000 == 0 { // one connection a second
				w.Answers++
				if n.Stage == Watched || !h.unheard {
					w.Heard++
				}
			}
			h.o.Work.Selectors[n.Selector] = w
		}
	}
	return stages, told
}

// passUncounted is what a tick counts between looks.
func (h *trialHost) passUncounted(n Untracked, w *SelectorWork) {
	switch {
	case h.idle[n.Selector.String()]:
	case n.Stage == Trial:
		w.Asked += 10
		h.o.Work.Selectors[n.Selector] = *w
	case n.Stage != Watched && n.Selector.Port != 0:
		h.o.Work.FreedOpened++
	case n.Stage != Watched:
		w.New++
		h.o.Work.Selectors[n.Selector] = *w
	}
}

// A selector without a port waits for the trials of its parts, but not for those that nobody uses.
func TestWholeWaitsForItsParts(t *testing.T) {
	h := newTrialHost(t, "all", "tcp/80", "tcp/22")
	h.idle["tcp/22"] = true
	if stages, _ := h.pass(900 * time.Millisecond); stages["all"] != "watched" || stages["tcp/80"] != "trial" {
		t.Errorf("in the first trial: %v", stages)
	}
	stages, _ := h.pass(4 * time.Second)
	if stages["all"] != "freed" || stages["tcp/80"] != "freed" || stages["tcp/22"] != "trial" {
		t.Errorf("a few seconds later: %v", stages)
	}
	// Now somebody tries ssh, which the host's own rules know only as tracked.
	h.idle["tcp/22"], h.drops["tcp/22"] = false, true
	stages, told := h.pass(time.Second)
	if stages["all"] != "" || stages["tcp/22"] != "" || stages["tcp/80"] != "freed" {
		t.Errorf("after ssh was dropped: %v", stages)
	}
	refusal := h.u.refusal(parsed(t, "all"), h.o)
	want := "tcp/22, which is part of it, must stay tracked: the host's own rules let 0 of"
	if !strings.HasPrefix(refusal, want) {
		t.Errorf("all is refused for %q, want %q; told\n%s", refusal, want, told)
	}
	if _, need := h.u.needEntries[parsed(t, "all")]; !need {
		t.Error("the connections of all are given no entries")
	}
}

// A part that is refused on the host, or on its management lane, keeps the whole tracked.
func TestWholeRefusedForAPart(t *testing.T) {
	h := newTrialHost(t, "tcp", "udp", "udp/53")
	lane := parsed(t, "tcp/22 with 192.0.2.0/24")
	h.o.Lane, h.o.Refused = []Selector{lane}, map[Selector]string{lane: "NAT"}
	stages, _ := h.pass(5 * time.Second)
	if stages["tcp"] != "" || stages["udp"] != "freed" {
		t.Errorf("stages %v", stages)
	}
}

// What the host asks and does not hear ends a whole selector, however rarely it asks, and only that.
func TestWholeMustHear(t *testing.T) {
	for _, unheard := range []bool{false, true} {
		h := newTrialHost(t, "all", "tcp/80")
		h.unheard = unheard
		stages, told := h.pass(10 * time.Second)
		if freed := stages["all"] == "freed"; freed == unheard || stages["tcp/80"] != "freed" {
			t.Errorf("unheard %v: %v\n%s", unheard, stages, told)
		}
		want := "all taken back: the host's own rules let 0 of 3 untracked answers to what it asked through"
		if unheard && !strings.Contains(told, want) {
			t.Errorf("told\n%s\nwant %s", told, want)
		}
	}
}

// What a selector without a port has opened is not counted again for its parts.
func TestOpenedOnce(t *testing.T) {
	h := newTrialHost(t, "all", "tcp/80", "tcp/22")
	h.pass(5 * time.Second)
	all, part := h.o.Work.Selectors[parsed(t, "all")].New, h.o.Work.Selectors[parsed(t, "tcp/80")].New
	if got := h.u.opened(h.o); all == 0 || got != max(all, 2*part) {
		t.Errorf("opened %d, want the greater of %d and twice %d", got, all, part)
	}
}

// A trial keeps the loop awake until its end; one that nobody sends anything to goes on without.
func TestIdleTrialIsInNoHurry(t *testing.T) {
	h := newTrialHost(t, "tcp/80")
	h.idle["tcp/80"] = true
	c := Defaults(Server)
	for _, step := range []struct {
		pass   time.Duration
		moving bool
	}{{c.Trial / 2, true}, {c.Trial, false}} {
		stages, told := h.pass(step.pass)
		if moving := h.u.moving(h.o.Time, c); moving != step.moving || stages["tcp/80"] != Trial.String() {
			t.Errorf("after %v more: moving %v, stages %v\n%s", step.pass, moving, stages, told)
		}
	}
}

// A look reads one counter after the other, and what comes meanwhile is only in the latter. That is no fault of the
// host's rules, at the beginning of a trial as little as later.
func TestTrialIsJudgedByWhatCounts(t *testing.T) {
	type read struct{ requests, delivered uint64 }
	for _, c := range []struct {
		name string
		read []read // look by look, from the trial's first
		told string
	}{
		{"delivered while the first look reads", []read{{10, 16}, {16, 16}, {16, 16}, {20, 20}}, ""},
		{"the first look took long", []read{{10, 50}, {60, 60}, {80, 80}}, ""},
		{"a later look took long", []read{{10, 10}, {10, 10}, {34, 50}, {70, 70}, {100, 100}}, ""},
		{"nothing is delivered", []read{{10, 10}, {10, 10}, {12, 10}, {13, 10}},
			"tcp/80 taken back: the host's own rules let 0 of 3 untracked requests through\n"},
		{"nothing is delivered, and the first look took long", []read{{10, 16}, {16, 16}, {19, 16}},
			"tcp/80 taken back: the host's own rules let 0 of 3 untracked requests through\n"},
		{"reached some other way, too", []read{{0, 0}, {0, 0}, {20, 40}, {40, 80}},
			"tcp/80 taken back: 40 deliveries for 20 requests: it is reached some other way, too\n"},
		{"reached some other way, too, by little more", []read{{0, 0}, {0, 0}, {20, 40}, {21, 44}},
			"tcp/80 taken back: 4 deliveries for 1 requests: it is reached some other way, too\n"},
	} {
		h := newTrialHost(t, "tcp/80")
		h.idle["tcp/80"] = true
		if stages, _ := h.pass(100 * time.Millisecond); stages["tcp/80"] != "trial" {
			t.Fatalf("%s: stages %v", c.name, stages)
		}
		told := ""
		for _, r := range c.read {
			h.o.Work.Selectors[parsed(t, "tcp/80")] = SelectorWork{Requests: r.requests, Delivered: r.delivered}
			_, now := h.pass(50 * time.Millisecond)
			told += now
		}
		if told != c.told {
			t.Errorf("%s: told %q, want %q", c.name, told, c.told)
		}
	}
}

// A forwarded service whose inside host is asked some other way, too, is not untracked, and taken back at once where
// that begins later; so is one of which the host lets no error through that asks for smaller packets. Its connections
// are given entries before its rules go, so that nothing is left to do then.
func TestForwardedTrials(t *testing.T) {
	const name = "tcp/443 at 203.0.113.1/32 on wan0 to 10.0.0.2:8443 by wan0"
	s := parsed(t, name)
	for _, c := range []struct {
		name   string
		before time.Duration
		change func(*SelectorWork)
		told   string
	}{
		{"other ways from the start", 0, func(w *SelectorWork) { w.Besides++ },
			name + " stays tracked: 1 packets came to 10.0.0.2:8443 some other way: the answers could not be told apart\n"},
		{"other ways while on trial", 500 * time.Millisecond, func(w *SelectorWork) { w.Besides++ },
			name + " taken back: 1 packets came to the inside host some other way: its answers can't be told apart\n"},
		{"other ways later", 4 * time.Second, func(w *SelectorWork) { w.Besides++ },
			name + " taken back: 1 packets came to the inside host some other way: its answers can't be told apart\n"},
		{"errors", 4 * time.Second, func(w *SelectorWork) { w.Errors += 5 },
			name + " taken back: the host's own rules let 0 of 5 untracked ICMP errors through that ask for smaller packets\n"},
	} {
		h := newTrialHost(t, name)
		h.pass(100 * time.Millisecond) // it is watched
		if c.before == 0 {
			h = newTrialHost(t, name)
			h.pass(50 * time.Millisecond)
			h.o.Work.Selectors[s] = SelectorWork{}
			h.u.selectors[s].evidence = from(SelectorWork{})
		} else if stages, _ := h.pass(c.before); stages[name] != "trial" && stages[name] != "freed" {
			t.Errorf("%s: before: %v", c.name, stages)
		}
		w := h.o.Work.Selectors[s]
		c.change(&w)
		h.o.Work.Selectors[s] = w
		stages, told := h.pass(1500 * time.Millisecond)
		if stages[name] != "" || !strings.HasSuffix(told, c.told) {
			t.Errorf("%s: it is %q, told %q, want %q", c.name, stages[name], told, c.told)
		}
		if len(h.u.needEntries) > 0 || len(h.u.adopt()) > 0 {
			t.Errorf("%s: %v still need entries", c.name, h.u.needEntries)
		}
	}
}
