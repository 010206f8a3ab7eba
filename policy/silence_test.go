package policy

import (
	"testing"
	"time"
)

const established, finWait = "nf_conntrack_tcp_timeout_established", "nf_conntrack_tcp_timeout_fin_wait"

// Connections that are silent all night are there in the morning: full pressure doesn't shorten their timeout below
// what they need, in this process and in the next, until nobody has been as silent for a week.
func TestSilencesAreOutlasted(t *testing.T) {
	m := New(Defaults(Server))
	now := dayStart
	o := Observation{Capacity: 1000, Host: Host{Admin: map[string]int{established: 432000, finWait: 120}}}
	tick := func(count int, silences map[string]int) map[string]int {
		now = now.Add(time.Second)
		o.Time, o.Count, o.Census = now, count, nil
		if silences != nil {
			o.Census = calmCensus(now, map[string]int{"192.0.2.1/32": 10})
			o.Census.Silences = silences
		}
		return m.Tick(o).Posture.Settings
	}
	for range 20 {
		tick(100, nil)
	}
	tick(100, map[string]int{established: 36000})
	tick(100, map[string]int{established: 8000, finWait: 50})
	full := func() map[string]int {
		for range 60 {
			tick(1000, nil)
		}
		return tick(1000, nil)
	}
	if got := full(); got[established] != 45000 || got[finWait] != 62 {
		t.Errorf("with silences of ten hours and of 50 s: %v", got)
	}
	// Who comes back late now shows that others came too late.
	tick(1000, map[string]int{finWait: 60})
	if got := full(); got[finWait] != 75 {
		t.Errorf("who nearly came too late at the floor didn't move it: %v", got)
	}
	kept := *m.OrdinaryDay()
	m = New(Defaults(Server))
	m.Recall(kept)
	if got := full(); got[established] != 45000 {
		t.Errorf("forgotten by the next process: %v", got)
	}
	now = now.Add(8 * 24 * time.Hour)
	tick(1000, map[string]int{})
	if got := full(); got[established] != 7440 || got[finWait] != 60 {
		t.Errorf("a silence is still outlasted after a week: %v", got)
	}
}

// Only what the administrator keeps for longer than a floor can be cut by it.
func TestWatchedFloors(t *testing.T) {
	got := WatchedFloors(timeoutFloors(Server), map[string]int{established: 432000, finWait: 60,
		"nf_conntrack_udp_timeout": 30, "nf_conntrack_udp_timeout_stream": 7200, "nf_conntrack_tcp_timeout_time_wait": 120})
	if len(got) != 2 || got[established] != 7440 || got["nf_conntrack_udp_timeout_stream"] != 3600 {
		t.Errorf("%v", got)
	}
	for _, name := range conversations {
		if _, ok := timeoutFloors(Server)[name]; !ok {
			t.Errorf("%s has no floor", name)
		}
	}
}
