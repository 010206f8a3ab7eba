package state

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// Login is a connection whose peer has logged in.
type Login struct {
	Local  netip.AddrPort `json:"local"`
	Remote netip.AddrPort `json:"remote"`
	Since  time.Time      `json:"since"` // when it was first seen
}

// loginsVersion is the version of the file that logins are kept in.
const loginsVersion = 1

// keptLogins is that file.
type keptLogins struct {
	Version int       `json:"version"`
	At      time.Time `json:"at"`
	Written moment    `json:"written"`
	Logins  []Login   `json:"logins"`
}

// loginsLast is how long a process may have been away whose logins count: a connection that is still there then may
// be another one.
const loginsLast = time.Hour

// keepLoginsEvery is how often logins are written down that have not changed.
const keepLoginsEvery = loginsLast / 4

func (d *Dir) logins() string { return filepath.Join(d.path, "logins.json") }

// KeepLogins writes down who is logged in, where that changed or was written long ago. Unlike the others this method
// is the surveyor's, beside the loop.
func (d *Dir) KeepLogins(logins []Login, now time.Time) error {
	if d == nil || slices.Equal(logins, d.keptLogins.Logins) && now.Sub(d.keptLogins.At) < keepLoginsEvery {
		return nil
	}
	if len(logins) == 0 && d.keptLogins.At.IsZero() {
		return nil
	}
	d.keptLogins = keptLogins{loginsVersion, now, d.moment(now), logins} // a full disk is not asked at each survey
	text, err := json.Marshal(d.keptLogins)
	if err == nil {
		err = Replace(d.logins(), append(text, '\n'))
	}
	if err != nil {
		return fmt.Errorf("keep who is logged in: %w", err)
	}
	return nil
}

// Logins returns who was logged in when an earlier process ended, not long ago.
func (d *Dir) Logins(now time.Time) ([]Login, error) {
	if d == nil {
		return nil, nil
	}
	text, err := os.ReadFile(d.logins())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var kept keptLogins
	if err == nil {
		err = json.Unmarshal(text, &kept)
	}
	switch {
	case err != nil:
		return nil, fmt.Errorf("read who was logged in: %w", err)
	case kept.Version > loginsVersion:
		return nil, fmt.Errorf("read who was logged in: version %d, and this ctguard knows versions up to %d",
			kept.Version, loginsVersion)
	}
	here := d.since(kept.Written, now)
	if at := here(kept.At); now.Sub(at) > loginsLast || at.After(now) {
		return nil, nil
	}
	for i := range kept.Logins {
		kept.Logins[i].Since = here(kept.Logins[i].Since)
	}
	return kept.Logins, nil
}
