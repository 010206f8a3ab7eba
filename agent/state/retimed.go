package state

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"time"
)

// versionRetimed is the version of the note's format.
const versionRetimed = 1

// retimedNote says which timeouts were given to entries that were there. How long an entry has been silent is told
// from what it has left, and of one that was retimed that is little: whoever asks must know, also when no daemon runs.
type retimedNote struct {
	Version  int                `json:"version"`
	Written  moment             `json:"written"`
	Timeouts map[string]retimed `json:"timeouts"` // by sysctl name
}

// retimed is one timeout.
type retimed struct {
	Seconds int       `json:"seconds"` // the shortest that was given
	Until   time.Time `json:"until"`   // by then each such entry has expired, or a packet of it has come
}

func (d *Dir) retimed() string { return filepath.Join(d.path, "retimed.json") }

// NoteRetimed writes down, before that is done, that entries are given these timeouts, in seconds by sysctl name.
func (d *Dir) NoteRetimed(given map[string]int, now time.Time) error {
	if d == nil || len(given) == 0 {
		return nil
	}
	note, _ := d.readRetimed(now) // what can't be read is written anew
	for name, seconds := range given {
		was, known := note.Timeouts[name]
		is := retimed{seconds, now.Add(time.Duration(seconds) * time.Second)}
		if known {
			is.Seconds = min(is.Seconds, was.Seconds)
		}
		if known && was.Until.After(is.Until) {
			is.Until = was.Until
		}
		note.Timeouts[name] = is
	}
	note.Version, note.Written = versionRetimed, d.moment(now)
	d.given = &note
	text, err := json.Marshal(note)
	if err == nil {
		err = d.replace(d.retimed(), append(text, '\n'))
	}
	if err != nil {
		return fmt.Errorf("note what entries are given: %w", err)
	}
	return nil
}

// Retimed returns the shortest timeouts that entries were given which may be there still, in seconds by sysctl name. A
// dry run gives none.
func (d *Dir) Retimed(now time.Time) (map[string]int, error) {
	if d == nil {
		return nil, nil
	}
	note, err := d.readRetimed(now)
	given := make(map[string]int, len(note.Timeouts))
	for name, one := range note.Timeouts {
		given[name] = one.Seconds
	}
	return given, err
}

// readRetimed returns what still counts of the note: of this process's last one, or of the file.
func (d *Dir) readRetimed(now time.Time) (retimedNote, error) {
	if d.given == nil {
		var kept retimedNote
		text, err := os.ReadFile(d.retimed())
		if err == nil {
			err = d.read(d.retimed(), text, &kept, versionRetimed)
		}
		note := retimedNote{Timeouts: make(map[string]retimed, len(kept.Timeouts))}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return note, err
		}
		here := d.since(kept.Written, now)
		for name, one := range kept.Timeouts {
			note.Timeouts[name] = retimed{one.Seconds, here(one.Until)}
		}
		d.given = &note
	}
	maps.DeleteFunc(d.given.Timeouts, func(_ string, one retimed) bool { return !now.Before(one.Until) })
	return *d.given, nil
}
