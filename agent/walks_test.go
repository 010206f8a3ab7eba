package agent

import (
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"ctguard/policy"
)

// What a census decided is carried out, also where another walk was under way when it did: the caps of one tick wait.
func TestCapsWaitForTheirWalk(t *testing.T) {
	k := newKernel(t)
	k.count, k.evicted = 950, 5
	a := newAgent(k, parse(t, ""), false)
	l := a.loop
	l.census, l.fresh = heavy(900), true
	l.tick()
	if len(l.decision.Posture.Caps) == 0 {
		t.Fatal("nobody is above a fair share")
	}
	l.tick() // another walk is under way meanwhile
	if len(l.decision.Posture.Caps) > 0 {
		t.Fatal("a tick without a census decides on caps: nothing is shown")
	}
	a.walkAll(t)
	if len(k.evictions) != 1 {
		t.Errorf("%d evictions, want the one that the census asked for", len(k.evictions))
	}
	l.decision.Posture.Limits = nil
	l.keepCaps(policy.Observation{})
	if l.caps != nil {
		t.Error("caps outlive the step that wanted them")
	}
}

// walkAll does the walks that are due, a bounded number of them.
func (a *Agent) walkAll(t *testing.T) {
	t.Helper()
	for range 8 {
		w := a.loop.nextWalk(time.Now())
		if w == nil {
			return
		}
		w.do(t.Context(), a.walker)(a.loop)
	}
}

// However many walks are due at the same time, each gets its turn: none starves another.
func TestNoWalkStarvesAnother(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKernel(t)
		k.count, k.census = 950, heavy(900)
		a := newAgent(k, parse(t, ""), false)
		l := a.loop
		l.decision.Scan, l.decision.Hurry = policy.WholeScan, true
		p := &l.decision.Posture
		p.Limits = []policy.Limit{{Prefix: k.census.Sources[0].Prefix}}
		for i := range 200 {
			time.Sleep(50 * time.Millisecond) // each walk takes as long as a tick: there is never time for all
			if l.last.Time = time.Now(); l.fresh {
				l.fresh, l.caps, l.capsOf = false, []policy.Cap{{Prefix: k.census.Sources[0].Prefix, Keep: 3}}, l.census
			}
			p.Purges = []policy.Purge{{Class: policy.FlowClass{Protocol: 17, Port: 53}}}
			p.Retire = policy.Retirement{Silent: time.Second}
			p.Settings = map[string]int{"nf_conntrack_tcp_timeout_time_wait": 119 - i/40}
			if w := l.nextWalk(time.Now()); w != nil {
				w.do(t.Context(), a.walker)(l)
			}
		}
		if len(k.evictions) < 5 || len(k.purged) < 5 || len(k.retired) < 1 || len(k.retimings) < 3 || k.scans < 5 {
			t.Errorf("in ten seconds: %d evictions, %d purges, %d retirements, %d retimings, %d scans", len(k.evictions),
				len(k.purged), len(k.retired), len(k.retimings), k.scans)
		}
	})
}

// While the table is about to fill up, who fills it is found out before entries are purged or let go.
func TestHurriedScanComesFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKernel(t)
		k.count, k.census = 950, heavy(900)
		l := newAgent(k, parse(t, ""), false).loop
		p := &l.decision.Posture
		p.Purges = []policy.Purge{{Class: policy.FlowClass{Protocol: 17, Port: 53}}}
		p.Retire = policy.Retirement{Silent: time.Second}
		l.decision.Scan = policy.WholeScan
		if _, scans := l.nextWalk(time.Now()).(scanWalk); scans {
			t.Error("a scan that is in no hurry comes first")
		}
		l.decision.Hurry = true
		if w, scans := l.nextWalk(time.Now()).(scanWalk); !scans {
			t.Errorf("%T comes first", w)
		}
	})
}

// A walk that brings nothing comes less and less often, and at full pace again once it brings something.
func TestBackoff(t *testing.T) {
	now := time.Now()
	var b backoff
	var pauses []time.Duration
	for range 5 {
		b.worked(now, false, time.Second, 10*time.Second)
		pauses = append(pauses, b.pause)
	}
	want := []time.Duration{2 * time.Second, 4 * time.Second, 8 * time.Second, 10 * time.Second, 10 * time.Second}
	if !slices.Equal(pauses, want) {
		t.Errorf("pauses %v, want %v", pauses, want)
	}
	if b.due(now.Add(9*time.Second), time.Second) || !b.due(now.Add(10*time.Second), time.Second) {
		t.Error("the pause is not kept")
	}
	if b.worked(now, true, time.Second, 10*time.Second); b.pause != time.Second {
		t.Errorf("after a useful walk the pause is %v", b.pause)
	}
}

// In the networks of this router's own IPv6 addresses each host is a source.
func TestOwnNetworksAreToldApart(t *testing.T) {
	l := newAgent(newKernel(t), parse(t, ""), false).loop
	l.decision.Posture.Allow = []netip.Prefix{netip.MustParsePrefix("2001:db8:1::1/128"),
		netip.MustParsePrefix("2001:db8:2::/48"), netip.MustParsePrefix("192.0.2.1/32")}
	if got := l.apart(); !slices.Equal(got, []netip.Addr{netip.MustParseAddr("2001:db8:1::1")}) {
		t.Errorf("told apart: the networks of %v", got)
	}
}

// Learning begins at once, comes often in the first minute, and costs a thousandth of the time later on.
func TestLearningPace(t *testing.T) {
	l := newAgent(newKernel(t), parse(t, ""), false).loop
	l.census = &policy.Census{Took: 100 * time.Millisecond}
	var pauses []time.Duration
	for n := range 8 {
		l.learnt = n
		pauses = append(pauses, l.learnPause())
	}
	want := []time.Duration{3 * time.Second, 3 * time.Second, 6 * time.Second, 12 * time.Second, 24 * time.Second,
		100 * time.Second, 100 * time.Second, 100 * time.Second}
	if !slices.Equal(pauses, want) {
		t.Errorf("pauses %v, want %v", pauses, want)
	}
}

// Where rules may refuse what this host sends, a service that speaks again needs the entry of the question: it stays.
func TestRetirementsWhereOutputIsFiltered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKernel(t)
		a := newAgent(k, parse(t, ""), false)
		l := a.loop
		l.facts.Services = []policy.Selector{{Protocol: policy.UDP, Port: 5683}}
		l.decision.Posture.Retire = policy.Retirement{Silent: time.Second}
		for _, filters := range []bool{false, true} {
			time.Sleep(time.Minute)
			l.facts.FiltersOutput = filters
			w, ok := l.retiring(time.Now()).(retireWalk)
			if !ok || (len(w.retirement.Services) == 0) != filters {
				t.Errorf("filtered %v: %+v", filters, w)
			}
		}
	})
}
