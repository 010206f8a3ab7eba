package agent

import (
	"time"

	"ctguard/agent/sysctl"
	"ctguard/nft"
	"ctguard/policy"
)

// RevertFor is how long the daemon stays at level 0 after `ctguard revert`.
const RevertFor = 15 * time.Minute

// Revert puts back what a daemon left that is no longer running, in the network namespace of the
// calling thread, and says what that was.
func Revert(c Config, root string) ([]string, error) {
	var done []string
	removed, err := nft.Revert()
	if err != nil {
		return nil, err
	}
	if removed {
		done = append(done, "table inet "+nft.Name+" removed")
	}
	settings, err := sysctl.NewKeeper(root+"/proc", c.StateDir)
	if err != nil {
		return done, err
	}
	changes, err := settings.Revert()
	for _, change := range changes {
		done = append(done, change.String())
	}
	return done, err
}

// backToBaseline drops every limit, the operator's too, and pins level 0 for a while.
func (a *Agent) backToBaseline(r HoldRequest) error {
	for _, word := range a.machine.Manual() {
		if !word.Release {
			word.Until = time.Now()
			a.machine.SetManual(word)
		}
	}
	r.Kind, r.Level = policy.Pin, 0
	return a.hold(r)
}
