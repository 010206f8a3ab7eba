package agent

import (
	"errors"
	"io/fs"
	"os"
	"time"

	"golang.org/x/time/rate"

	"ctguard/agent/conntrack"
	"ctguard/agent/survey"
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
	n, late := revertUntracked(c, root)
	if n > 0 {
		done = append(done, adopted(n))
	}
	return done, errors.Join(err, late)
}

// revertUntracked gives connections entries that a daemon left untracked.
func revertUntracked(c Config, root string) (int, error) {
	if _, err := os.Stat(c.notePath()); errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	table, err := conntrack.Open()
	if err != nil {
		return 0, err
	}
	defer table.Close()
	l := &live{walker: table, connections: survey.New(root).Established, adopting: rate.NewLimiter(adoptionsPerSecond, adoptionsPerSecond)}
	return adoptNoted(c.notePath(), l.adopt)
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
