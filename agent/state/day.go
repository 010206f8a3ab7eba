package state

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"ctguard/policy"
)

// keepEvery is how often the ordinary day is written to disk at most: losing so much of it is no loss.
const keepEvery = 5 * time.Minute

// The versions of the file that an ordinary day is kept in. Older ones don't know that a source may be in a conntrack
// zone, and read a day in which none is.
const (
	dayWithoutZones = 1
	dayVersion      = 2
)

// keptDay is that file.
type keptDay struct {
	Version int                 `json:"version"`
	Written moment              `json:"written"`
	Day     *policy.OrdinaryDay `json:"day"`
}

func (d *Dir) day() string { return filepath.Join(d.path, "ordinary.json") }

// KeepDay writes an ordinary day down that has something new in it, no more often than every five minutes.
func (d *Dir) KeepDay(day *policy.OrdinaryDay, now time.Time) error {
	if d == nil || !day.Known() || !day.Updated.After(d.keptDay) {
		return nil
	}
	if d.keptAt.IsZero() || now.Sub(d.keptAt) >= keepEvery {
		d.keepFault = d.keep(day, now)
	}
	return d.keepFault
}

// KeepDayNow writes an ordinary day down, if there is one.
func (d *Dir) KeepDayNow(day *policy.OrdinaryDay) error {
	if d == nil || !day.Known() || !day.Updated.After(d.keptDay) {
		return nil
	}
	return d.keep(day, time.Now())
}

func (d *Dir) keep(day *policy.OrdinaryDay, now time.Time) error {
	version := dayWithoutZones
	if day.Zoned() {
		version = dayVersion
	}
	text, err := json.Marshal(keptDay{version, d.moment(now), day})
	if err == nil {
		err = d.replace(d.day(), append(text, '\n'))
	}
	d.keptAt = now // a full disk is not asked at each tick
	if err != nil {
		return fmt.Errorf("keep the ordinary day: %w", err)
	}
	d.keptDay = day.Updated
	return nil
}

// Day reads the ordinary day of an earlier process. One that is too old, of another version or damaged is as good as
// none: the error says so.
func (d *Dir) Day(now time.Time) (policy.OrdinaryDay, error) {
	var none policy.OrdinaryDay
	if d == nil {
		return none, nil
	}
	text, err := os.ReadFile(d.day())
	if errors.Is(err, fs.ErrNotExist) {
		return none, nil
	}
	var kept keptDay
	if err == nil {
		err = d.read(d.day(), text, &kept, dayVersion)
	}
	switch {
	case err != nil:
		return none, fmt.Errorf("read the ordinary day of an earlier run: %w", err)
	case kept.Version < dayWithoutZones:
		return none, fmt.Errorf("the ordinary day of an earlier run has version %d, not %d: it is learnt anew",
			kept.Version, dayVersion)
	case kept.Day == nil:
		return none, nil
	}
	kept.Day.Move(d.since(kept.Written, now), now)
	if !kept.Day.Fresh(now) {
		return none, nil
	}
	return *kept.Day, nil
}
