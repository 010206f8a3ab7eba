package agent

import (
	"errors"
	"time"

	"ctguard/agent/config"
	"ctguard/agent/conntrack"
	"ctguard/agent/state"
	"ctguard/agent/survey"
	"ctguard/agent/sysctl"
	"ctguard/nft"
)

// RevertFor is how long the daemon stays at level 0 after `ctguard revert`.
const RevertFor = 15 * time.Minute

// Revert puts back what a daemon left that is no longer running, in the network namespace of the
// calling thread, and says what that was.
func Revert(c config.Config, root string) ([]string, error) {
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
	n, late := revertUntracked(c, root)
	if n > 0 {
		done = append(done, adopted(n))
	}
	return done, errors.Join(err, late)
}

// revertUntracked gives connections entries that a daemon left untracked.
func revertUntracked(c config.Config, root string) (int, error) {
	d := state.At(c.StateDir)
	if _, there, _ := d.Untracked(); !there {
		return 0, nil
	}
	table, err := conntrack.Open()
	if err != nil {
		return 0, err
	}
	defer table.Close()
	return adoptNoted(d, newLive(nil, nil, table, survey.New(root).Established).adopt)
}
