package nft

import (
	"fmt"
	"testing"
	"time"

	"ctguard/policy"
)

// TestAllocations holds what a tick's ruleset may allocate: unlike time it says the same on every machine. The bounds
// are a quarter above what was found.
func TestAllocations(t *testing.T) {
	services := make([]policy.Untracked, 200)
	for i := range services {
		services[i] = tracked(policy.Freed, fmt.Sprintf("tcp/%d", 1000+i))[0]
	}
	for _, c := range []struct {
		name    string
		posture policy.Posture
		most    float64
	}{
		{"10000 limits", policy.Posture{Limits: many(10_000, now.Add(time.Hour)), LimitRate: 1, LimitBurst: 1}, 360},
		{"200 services in a look", policy.Posture{Notrack: services}, 710},
		{"200 services between looks", policy.Posture{Notrack: services, Uncounted: true}, 715},
	} {
		d := Desired{Posture: c.posture}
		got := testing.AllocsPerRun(5, func() {
			var keep retained
			d.ruleset(now, &keep)
		})
		if got > c.most {
			t.Errorf("%s: %.0f allocations, want at most %.0f", c.name, got, c.most)
		}
	}
}
