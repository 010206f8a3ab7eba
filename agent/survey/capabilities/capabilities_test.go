package capabilities

import (
	"slices"
	"testing"

	"ctguard/agent/conntrack/conntracktest"
	"ctguard/nft"
	"ctguard/policy"
)

// What can be probed is found out without leaving anything in the namespace it is asked in, and this kernel,
// on which all other tests run, lacks no step.
func TestProbe(t *testing.T) {
	conntracktest.Own(t)
	found, err := Probe()
	if err != nil {
		t.Fatal(err)
	}
	if len(found.Lacking) > 0 || found.Tracked != "" {
		t.Errorf("steps lacking: %v, %q", found.Lacking, found.Tracked)
	}
	if removed, err := nft.Revert(); removed || err != nil {
		t.Errorf("a table was left behind: %v, %v", removed, err)
	}
}

// Each step that needs rules which a kernel lacks is named, with the version that has them.
func TestLackingSteps(t *testing.T) {
	has := lackingSteps(nft.Capabilities{Socket: true, Synproxy: true})
	lacks := lackingSteps(nft.Capabilities{})
	var names []policy.StepName
	for _, name := range policy.StepNames() {
		if lacks[name] != "" {
			names = append(names, name)
		}
	}
	if len(has) > 0 || !slices.Equal(names, []policy.StepName{policy.ClosedPorts, policy.Synproxy}) {
		t.Errorf("lacking %v of everything, %v of nothing", has, lacks)
	}
}
