package agent

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"ctguard/agent/survey"
	"ctguard/policy"
)

// What a spoofed flood left of a service is purged while the table is crowded, once per tick, and no
// longer when it is not. A dry run purges nothing.
func TestPurging(t *testing.T) {
	dns := policy.Purge{Class: policy.FlowClass{Protocol: 17, Port: 53}, Local: true, Unfinished: 300 * time.Millisecond}
	for _, dryRun := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			k := newKernel(t)
			k.readOnly = dryRun
			a := newAgent(k, parse(t, "[steps.notrack]\nenabled = false"), dryRun)
			l := a.loop
			l.learn(survey.Facts{Host: policy.Host{Services: []policy.Selector{{Protocol: policy.UDP, Port: 53}}}})
			k.count, k.census = 950, &policy.Census{Whole: true, Seen: 950, Total: 950,
				Classes: [policy.NumClasses]int{policy.Replied: 600,
					policy.Assured: 350}, Ports: []policy.PortCount{{Protocol: 17, Port: 53, Entries: 600, Replied: 600}}}
			for range 20 {
				a.turn()
				time.Sleep(l.decision.Next)
			}
			if !slices.Contains(l.decision.Posture.Purges, dns) {
				t.Fatalf("classes to be purged: %v", l.decision.Posture.Purges)
			}
			purged := len(k.purged)
			if dryRun != (purged == 0) {
				t.Errorf("dry run %t: purged %d times", dryRun, purged)
			}
			k.count = 300
			a.turn()
			purged = len(k.purged)
			for range 20 {
				time.Sleep(l.decision.Next)
				a.turn()
			}
			if len(k.purged) != purged {
				t.Errorf("purged %d times more at 30 %%", len(k.purged)-purged)
			}
		})
	}
}
