package agent

import (
	"context"
	"errors"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"ctguard/agent/conntrack"
	"ctguard/agent/control"
	"ctguard/policy"
)

// top is the level at which every step is engaged.
var top = len(policy.StepNames())

// One tick observes, decides and applies.
func TestTick(t *testing.T) {
	k := newKernel(t)
	a := newAgent(k, parse(t, ""), false)
	l := a.loop
	k.count = 100
	l.tick()
	if s := l.board.Status(); s.Level != 0 || s.Count != 100 || s.Capacity != 1000 || s.Fill != 10 || s.Mode != "auto" {
		t.Errorf("calm: level %d, %d of %d (%g %%), mode %s", s.Level, s.Count, s.Capacity, s.Fill, s.Mode)
	}
	if k.desired.Posture.HasRules() || len(k.settings) > 0 {
		t.Errorf("calm: wants %+v and %v", k.desired.Posture, k.settings)
	}
	k.count = 950
	l.tick()
	if s := l.board.Status(); s.Level != top {
		t.Errorf("95 %%: level %d, want %d", s.Level, top)
	}
	if !k.desired.Posture.DropInvalid || k.settings["nf_conntrack_tcp_loose"] != 0 ||
		k.settings["nf_conntrack_tcp_timeout_time_wait"] != 10 {
		t.Errorf("95 %%: wants %+v and %v", k.desired.Posture, k.settings)
	}
	if l.decision.Next != 50*time.Millisecond {
		t.Errorf("under pressure the next tick comes after %s", l.decision.Next)
	}
	if err := l.revert(a.walker); err != nil {
		t.Error(err)
	}
	if k.desired.Posture.HasRules() || len(k.settings) > 0 {
		t.Errorf("reverted: wants %+v and %v", k.desired.Posture, k.settings)
	}
}

// The config may give this namespace less than the kernel's limit, never more.
func TestCapacity(t *testing.T) {
	for _, c := range []struct{ config, max, want int }{{0, 1000, 1000}, {500, 1000, 500}, {2000, 1000, 1000},
		{500, 0, 500}} {
		k := newKernel(t)
		k.max = c.max
		config := parse(t, "")
		config.Capacity = c.config
		o, err := newAgent(k, config, false).loop.observe(time.Now())
		if err != nil || o.Capacity != c.want {
			t.Errorf("config %d, kernel %d: capacity %d (%v), want %d", c.config, c.max, o.Capacity, err, c.want)
		}
	}
}

// Who makes the table smaller has it grow from there in the same tick, and not from what it was at the last survey: a
// second later it would have to shrink.
func TestShrunkTableGrows(t *testing.T) {
	k := newKernel(t)
	k.count, k.max = 483, 262_144
	k.admin["nf_conntrack_max"], k.admin["nf_conntrack_buckets"] = k.max, k.max
	l := newAgent(k, parse(t, ""), false).loop
	l.facts.MaxEntries = 1 << 20
	l.tick()
	k.max, k.admin["nf_conntrack_max"] = 16_384, 16_384
	k.count = 16_384
	l.tick()
	if got := k.settings["nf_conntrack_max"]; got != 8*16_384-1 {
		t.Errorf("16 384 entries: it grows to %d, want %d", got, 8*16_384-1)
	}
}

// A part that fails is told of when it begins and when it ends, not at each tick between, and the
// rest goes on.
func TestDegraded(t *testing.T) {
	for call, part := range map[string]string{
		"count": "observe", "max": "observe", "counters": "counters", "arrivals": "counters", "sockets": "counters",
		"work":  "counters",
		"rules": "rules", "settings": "settings",
	} {
		t.Run(call, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { degrade(t, call, part) })
		})
	}
}

func degrade(t *testing.T, call, part string) {
	k := newKernel(t)
	a := newAgent(k, parse(t, ""), false)
	l := a.loop
	forAWhile := func() {
		for range 10 {
			l.tick()
			time.Sleep(l.decision.Next)
		}
	}
	forAWhile()
	if n := len(l.reasons(policy.DegradedEvent)); n > 0 {
		t.Fatalf("%d degraded events before anything failed", n)
	}
	k.faults[call] = errors.New("out of order")
	forAWhile()
	k.faults[call] = nil
	forAWhile()
	want := []string{part + ": out of order", part + ": works again"}
	if diff := cmp.Diff(want, l.reasons(policy.DegradedEvent)); diff != "" {
		t.Errorf("degraded events (-want +got):\n%s", diff)
	}
	if s := l.board.Status(); len(s.Degraded) > 0 {
		t.Errorf("still degraded: %v", s.Degraded)
	}
}

// While the rules can't be written, timeouts still can, and the status says what is wrong.
func TestOneFaultLeavesTheRest(t *testing.T) {
	k := newKernel(t)
	a := newAgent(k, parse(t, ""), false)
	l := a.loop
	k.faults["rules"] = errors.New("no room")
	k.count = 950
	l.tick()
	if _, set := k.settings["nf_conntrack_tcp_timeout_time_wait"]; !set {
		t.Errorf("settings %v", k.settings)
	}
	if s := l.board.Status(); !slices.Contains(s.Degraded, "rules: no room") {
		t.Errorf("status says %v", s.Degraded)
	}
}

// A reading that fails makes no decision: nothing changes until it works again.
func TestBlindTickDecidesNothing(t *testing.T) {
	k := newKernel(t)
	a := newAgent(k, parse(t, ""), false)
	l := a.loop
	k.count = 950
	l.tick()
	applied := k.applied
	k.count, k.faults["count"] = 0, errors.New("gone")
	l.tick()
	if k.applied != applied || l.decision.Posture.Level != top {
		t.Errorf("level %d, rules written %d times more", l.decision.Posture.Level, k.applied-applied)
	}
	if l.decision.Next != l.config.Policy.Calm {
		t.Errorf("looks again after %s, want the calm tick", l.decision.Next)
	}
}

// Rules that somebody took away are made again, and that is told.
func TestRepair(t *testing.T) {
	k := newKernel(t)
	a := newAgent(k, parse(t, ""), false)
	l := a.loop
	k.count = 950
	l.tick()
	k.missing = true
	l.tick()
	l.tick()
	if k.missing || len(l.reasons(policy.RepairEvent)) != 1 {
		t.Errorf("missing: %v, repair events %v", k.missing, l.reasons(policy.RepairEvent))
	}
}

// flood is a table that fills, stays full and empties again, by tick.
var flood = slices.Concat([]int{100, 120, 300, 650, 800, 930, 960}, slices.Repeat([]int{990}, 30),
	[]int{700, 500, 300, 200, 150, 100, 100, 100})

// heavy is a census of a table that one source holds.
func heavy(entries int) *policy.Census {
	h := policy.Holding{Prefix: netip.MustParsePrefix("203.0.113.7/32"), Entries: entries}
	h.Classes[policy.Assured] = entries
	return &policy.Census{Total: entries, Seen: entries, Whole: true, Distinct: 1, Sources: []policy.Holding{h},
		Classes: h.Classes}
}

// A dry run writes nothing, and decides what a live run decides on the same observations.
func TestDryRunDecidesTheSame(t *testing.T) {
	run := func(dryRun bool) (decisions []policy.Decision, events []control.NumberedEvent) {
		synctest.Test(t, func(t *testing.T) {
			k := newKernel(t)
			k.readOnly = dryRun
			a := newAgent(k, parse(t, ""), dryRun)
			l := a.loop
			for _, count := range flood {
				k.count, k.census = count, heavy(count)
				a.turn()
				decisions = append(decisions, l.decision)
				// so that nothing is old enough to tell what it brought: what was shortened is unknown to a dry run
				time.Sleep(l.config.Policy.Pressed)
			}
			if err := l.revert(a.walker); err != nil {
				t.Error(err)
			}
			events = l.board.Recent(1000)
			if !dryRun && (k.applied == 0 || len(k.evictions) == 0 || len(k.retimings) == 0) {
				t.Errorf("the live run wrote %d rulesets, %d evictions, %d timeouts: nothing is shown", k.applied,
					len(k.evictions), len(k.retimings))
			}
		})
		return decisions, events
	}
	live, _ := run(false)
	dry, told := run(true)
	if diff := cmp.Diff(live, dry, comparePrefixes, cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("decisions (-live +dry):\n%s", diff)
	}
	if !slices.ContainsFunc(dry, func(d policy.Decision) bool {
		return d.Posture.Level == top &&
			len(d.Posture.Limits) > 0
	}) {
		t.Error("nobody was limited at the top of the ladder: nothing is shown")
	}
	for _, e := range told {
		if !e.DryRun {
			t.Errorf("event %q does not say that it is of a dry run", e.Reason)
		}
	}
}

// A dry run counts what it would have freed.
func TestDryRunCounts(t *testing.T) {
	census := heavy(900)
	e := conntrack.Eviction{Caps: []policy.Cap{{Prefix: census.Sources[0].Prefix, Keep: 300},
		{Prefix: netip.MustParsePrefix("192.0.2.1/32"), Keep: 1}}}
	freed, err := (&dryEntries{}).evict(t.Context(), e, census)
	if err != nil || freed != 600 {
		t.Errorf("would have freed %d (%v), want 600", freed, err)
	}
	e.Caps[0].SpareAssured = true
	if freed, _ := (&dryEntries{}).evict(t.Context(), e, census); freed != 0 {
		t.Errorf("would have freed %d of nothing but assured entries, which are spared", freed)
	}
	if freed, err := (&dryEntries{}).evict(t.Context(), e, nil); err != nil || freed != 0 {
		t.Errorf("without a census: %d (%v)", freed, err)
	}
}

// A dry run tells the settings that it would change, once each.
func TestDryRunTellsSettings(t *testing.T) {
	d := &dry{settings: fakeSettings{newKernel(t)}}
	for _, step := range []struct {
		wanted map[string]int
		want   []string
	}{
		{map[string]int{"nf_conntrack_udp_timeout": 20, "nf_conntrack_tcp_loose": 0},
			[]string{"nf_conntrack_tcp_loose 1 -> 0", "nf_conntrack_udp_timeout 30 -> 20"}},
		{map[string]int{"nf_conntrack_udp_timeout": 20, "nf_conntrack_tcp_loose": 0}, nil},
		{map[string]int{"nf_conntrack_udp_timeout": 10}, []string{"nf_conntrack_tcp_loose 0 -> 1",
			"nf_conntrack_udp_timeout 20 -> 10"}},
		{nil, []string{"nf_conntrack_udp_timeout 10 -> 30"}},
		{nil, nil},
	} {
		changes, err := d.set(step.wanted)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, c := range changes {
			got = append(got, c.String())
		}
		if diff := cmp.Diff(step.want, got); diff != "" {
			t.Errorf("%v (-want +got):\n%s", step.wanted, diff)
		}
	}
}

// The end of the context takes everything back, removes the socket and is no error.
func TestRunReverts(t *testing.T) {
	k := newKernel(t)
	k.count = 950
	c := parse(t, "")
	c.Socket, c.StateDir = filepath.Join(t.TempDir(), "s"), t.TempDir()
	a := newAgent(k, c, false)
	l := a.loop
	ready, ended := make(chan struct{}), make(chan error, 1)
	l.ready = func() { close(ready) }
	ctx, stop := context.WithCancel(t.Context())
	go func() { ended <- a.Run(ctx, nil) }()
	<-ready
	if s := l.board.Status(); s.Level != top {
		t.Errorf("level %d when ready, want %d", s.Level, top)
	}
	stop()
	if err := <-ended; err != nil {
		t.Errorf("the end: %v", err)
	}
	if k.desired.Posture.HasRules() || len(k.settings) > 0 {
		t.Errorf("left behind: %+v and %v", k.desired.Posture, k.settings)
	}
	if _, err := os.Stat(c.Socket); !os.IsNotExist(err) {
		t.Errorf("the socket is still there (%v)", err)
	}
}

// Sources are evicted once for each census, spared is who is allowed.
func TestEvictOncePerCensus(t *testing.T) {
	k := newKernel(t)
	k.evicted = 5
	a := newAgent(k, parse(t, ""), false)
	l := a.loop
	l.decision.Posture.Allow = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	l.caps = []policy.Cap{{Prefix: netip.MustParsePrefix("203.0.113.7/32"), Keep: 3}}
	if l.eviction(time.Now()) != nil {
		t.Error("an eviction without a census")
	}
	l.census = heavy(900)
	l.capsOf = l.census
	w := l.eviction(time.Now())
	if w == nil {
		t.Fatal("no eviction after a census")
	}
	w.do(t.Context(), a.walker)(l)
	if l.eviction(time.Now()) != nil {
		t.Error("a second eviction of the same census")
	}
	if len(k.evictions) != 1 || !slices.Equal(k.evictions[0].Spare, l.decision.Posture.Allow) ||
		k.evictions[0].Rate == nil {
		t.Errorf("evictions %+v", k.evictions)
	}
	if l.told(policy.EvictEvent, "5 entries of 1 heavy sources") != 1 {
		t.Errorf("events %v", l.reasons(policy.EvictEvent))
	}
	if l.census = heavy(900); l.eviction(time.Now()) != nil {
		t.Error("an eviction for a census that nobody has judged")
	}
	if l.capsOf = l.census; l.eviction(time.Now()) == nil {
		t.Error("no eviction after the next census")
	}
	l.caps, l.census = nil, heavy(900)
	if l.eviction(time.Now()) != nil {
		t.Error("an eviction of nobody")
	}
}

// Block, then evict: a heavy source is in the rules before any of its entries is taken, and keeps
// its assured ones where the rules could not be written.
func TestBlockThenEvict(t *testing.T) {
	for _, fault := range []error{nil, errors.New("no room")} {
		k := newKernel(t)
		k.count, k.faults["rules"] = 950, fault
		a := newAgent(k, parse(t, ""), false)
		l := a.loop
		l.census, l.fresh = heavy(900), true
		l.tick()
		if len(k.evictions) > 0 || len(k.desired.Posture.Limits) != 1 {
			t.Fatalf("rules %v: after the tick %d evictions, limits %v", fault, len(k.evictions), k.desired.Posture.Limits)
		}
		l.nextWalk(time.Now()).do(t.Context(), a.walker)(l)
		if len(k.retimings) != 1 || len(k.evictions) != 1 || len(k.evictions[0].Caps) != 1 ||
			k.evictions[0].Caps[0].SpareAssured != (fault != nil) {
			t.Errorf("rules %v: evictions %+v", fault, k.evictions)
		}
	}
}

// The entries of a selector are freed once, when it is untracked for good, and again if it was
// tracked in between.
func TestFreeSelectorsOnce(t *testing.T) {
	k := newKernel(t)
	a := newAgent(k, parse(t, ""), false)
	l := a.loop
	l.facts.Own = []netip.Addr{netip.MustParseAddr("198.51.100.1")}
	web, dns := policy.Selector{Protocol: policy.TCP, Port: 80}, policy.Selector{Protocol: policy.UDP, Port: 53}
	for _, step := range []struct {
		name    string
		notrack []policy.Untracked
		want    []policy.Selector
	}{
		{"watched", []policy.Untracked{{Selector: web, Stage: policy.Watched}}, nil},
		{"on trial", []policy.Untracked{{Selector: web, Stage: policy.Trial}}, nil},
		{"freed", []policy.Untracked{{Selector: web, Stage: policy.Freed}}, []policy.Selector{web}},
		{"still freed", []policy.Untracked{{Selector: web, Stage: policy.Freed}}, nil},
		{"one more", []policy.Untracked{{Selector: web, Stage: policy.Freed}, {Selector: dns, Stage: policy.Freed}},
			[]policy.Selector{dns}},
		{"tracked again", nil, nil},
		{"freed again", []policy.Untracked{{Selector: web, Stage: policy.Freed}}, []policy.Selector{web}},
	} {
		l.decision.Posture.Notrack, k.evictions = step.notrack, nil
		if w := l.freeing(); w != nil {
			w.do(t.Context(), a.walker)(l)
		}
		var got []policy.Selector
		for _, e := range k.evictions {
			got = append(got, e.Selectors...)
			if len(e.Caps) > 0 || !e.Local(l.facts.Own[0]) || e.Local(netip.MustParseAddr("192.0.2.1")) {
				t.Errorf("%s: eviction %+v", step.name, e)
			}
		}
		if !slices.Equal(got, step.want) {
			t.Errorf("%s: freed %v, want %v", step.name, got, step.want)
		}
	}
}

// Existing entries are rewritten when timeouts become shorter, never when they become longer.
func TestRetimeOnlyShorter(t *testing.T) {
	k := newKernel(t)
	a := newAgent(k, parse(t, ""), false)
	l := a.loop
	const udp, syn = "nf_conntrack_udp_timeout", "nf_conntrack_tcp_timeout_syn_recv"
	for _, step := range []struct {
		name           string
		settings, want map[string]int
	}{
		{"calm", nil, nil},
		{"no timeout", map[string]int{"nf_conntrack_tcp_loose": 0}, nil},
		{"shorter", map[string]int{udp: 20, syn: 30}, map[string]int{udp: 20, syn: 30}},
		{"the same", map[string]int{udp: 20, syn: 30}, nil},
		{"one shorter still", map[string]int{udp: 10, syn: 30}, map[string]int{udp: 10}},
		{"one longer", map[string]int{udp: 20, syn: 30}, nil},
		{"one longer, one shorter", map[string]int{udp: 25, syn: 10}, map[string]int{syn: 10}},
		{"calm again", nil, nil},
		{"shorter again", map[string]int{udp: 20}, map[string]int{udp: 20}},
	} {
		l.decision.Posture.Settings, k.retimings = step.settings, nil
		now := time.Now()
		if l.retiming(now) != nil {
			t.Errorf("%s: at once, though more may come", step.name)
		}
		if w := l.retiming(now.Add(retimeDelay)); w != nil {
			w.do(t.Context(), a.walker)(l)
		}
		var got map[string]int
		if len(k.retimings) > 0 {
			got = k.retimings[0]
		}
		if diff := cmp.Diff(step.want, got); diff != "" || len(k.retimings) > 1 {
			t.Errorf("%s: %d passes (-want +got):\n%s", step.name, len(k.retimings), diff)
		}
	}
}

// What existing entries were given is known to the walks that ask how long they have been silent, also when the
// settings are back.
func TestWalksKnowWhatEntriesWereGiven(t *testing.T) {
	const udp = "nf_conntrack_udp_timeout"
	k := newKernel(t)
	a := newAgent(k, parse(t, ""), false)
	l := a.loop
	l.decision.Posture.Settings = map[string]int{udp: 20}
	l.shortening()
	l.decision.Posture.Settings = nil
	l.decision.Posture.Retire.Silent = time.Second
	l.census = &policy.Census{Time: time.Now()}
	l.caps, l.capsOf = []policy.Cap{{Keep: 1}}, l.census
	want := map[string]int{udp: 20}
	if w, evicts := l.eviction(time.Now()).(evictWalk); !evicts || !maps.Equal(w.eviction.Retimed, want) {
		t.Errorf("an eviction knows of %v, want %v", w.eviction.Retimed, want)
	}
	l.finished.at = time.Time{}
	if r := l.retirement(time.Now()); r == nil || !maps.Equal(r.Retimed, want) {
		t.Errorf("a retirement knows of %+v", r)
	}
}

// Scans keep to their part of the time, and a scan that fails is told of and tried again.
func TestScanPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKernel(t)
		a := newAgent(k, parse(t, ""), false)
		l := a.loop
		due := func() bool { return l.scanning(time.Now()) != nil }
		if due() {
			t.Error("a scan on a calm day")
		}
		l.decision.Scan = policy.WholeScan
		if !due() {
			t.Error("no first scan")
		}
		const took = 100 * time.Millisecond
		l.census = &policy.Census{Time: time.Now(), Took: took}
		time.Sleep((calmShare - 1) * took)
		if due() {
			t.Errorf("scans take more than one part in %d of the time", calmShare)
		}
		l.decision.Hurry = true
		if !due() {
			t.Error("no haste")
		}
		l.census.Time, l.evicting = time.Now(), took
		time.Sleep((2*hurryShare - 1) * took)
		if due() {
			t.Error("haste has no bound")
		}
		time.Sleep(took)
		if !due() {
			t.Errorf("haste is not worth one part in %d of the time", hurryShare)
		}
		l.census.Time, l.census.Whole, l.evicting, l.decision.Compare = time.Now(), true, time.Minute, true
		time.Sleep(hurryPause)
		if !due() {
			t.Error("no haste to compare")
		}
		l.decision.Compare = false
		l.decision.Hurry, l.census.Time, l.evicting = false, time.Now(), took
		time.Sleep((2*calmShare - 1) * took)
		if due() {
			t.Error("what evicting takes does not count")
		}
		time.Sleep(took)
		if !due() {
			t.Error("no scan after the pause")
		}

		k.faults["scan"] = errors.New("interrupted")
		census := l.census
		l.scanning(time.Now()).do(t.Context(), a.walker)(l)
		if l.census != census || l.fresh || l.told(policy.DegradedEvent, "scan: interrupted") != 1 {
			t.Errorf("a failed scan: census replaced %v, events %v", l.census != census, l.reasons(policy.DegradedEvent))
		}
		k.faults["scan"] = nil
		if !due() {
			t.Error("a failed scan is not tried again")
		}
		l.scanning(time.Now()).do(t.Context(), a.walker)(l)
		if l.census == census || !l.fresh || l.told(policy.DegradedEvent, "scan: works again") != 1 {
			t.Error("the next scan did not count")
		}
	})
}

// A census is handed to the machine once.
func TestCensusOnce(t *testing.T) {
	k := newKernel(t)
	a := newAgent(k, parse(t, ""), false)
	l := a.loop
	l.census, l.fresh = heavy(10), true
	for i, want := range []bool{true, false, false} {
		if o, err := l.observe(time.Now()); err != nil || (o.Census != nil) != want {
			t.Errorf("observation %d: census %v (%v), want %v", i, o.Census != nil, err, want)
		}
	}
}

// Whoever starts the agent waits for what is tried out, and not for ever: it guards meanwhile, and says what is not
// known.
func TestReadyWithoutTrials(t *testing.T) {
	l := newAgent(newKernel(t), parse(t, ""), false).loop
	ready, now := false, time.Now()
	l.ready, l.untried = func() { ready = true }, true
	for _, after := range []time.Duration{0, trialPatience - time.Second} {
		if l.tellReady(now.Add(after)); ready {
			t.Fatalf("ready after %s", after)
		}
	}
	if l.tellReady(now.Add(trialPatience)); !ready {
		t.Error("not ready after", trialPatience)
	}
	if l.troubles["self-test"] == "" {
		t.Error("nobody is told of it")
	}
}
