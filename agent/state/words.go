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

// MaxOverride is the longest that an operator's word may hold.
const MaxOverride = 7 * 24 * time.Hour

// wordsVersion is the version of the file that operators' words are kept in. Version 0 said none.
const wordsVersion = 1

// keptWords is that file.
type keptWords struct {
	Version int    `json:"version"`
	Written moment `json:"written"`
	Words
}

// UnmarshalJSON is here because that of the words would be taken for the whole.
func (k *keptWords) UnmarshalJSON(text []byte) error {
	var is struct{ Written moment }
	err := json.Unmarshal(text, &is)
	k.Written = is.Written
	return errors.Join(err, json.Unmarshal(text, &k.Words))
}

// Words are what operators said and what still holds of it.
type Words struct {
	Override *policy.Override `json:"override"`
	Words    []policy.Word    `json:"words"`
}

// UnmarshalJSON reads also what version 0 wrote, which had another name for words.
func (w *Words) UnmarshalJSON(text []byte) error {
	var is struct {
		Override      *policy.Override
		Words, Manual []policy.Word
	}
	err := json.Unmarshal(text, &is)
	*w = Words{is.Override, append(is.Words, is.Manual...)}
	return err
}

// WordsOf returns the operators' words that a machine goes by.
func WordsOf(m *policy.Machine) Words { return Words{m.Override(), m.Words()} }

// words returns where the operators' words are kept.
func (d *Dir) words() string { return filepath.Join(d.path, "operator.json") }

// ErrForgetful says that the operators' words could not be written down.
var ErrForgetful = errors.New("done, but a restart will forget it")

// Remember writes the operators' words down.
func (d *Dir) Remember(w Words) error {
	if d == nil {
		return nil
	}
	text, err := json.MarshalIndent(keptWords{wordsVersion, d.moment(time.Now()), w}, "", "  ")
	if err == nil {
		err = d.replace(d.words(), append(text, '\n'))
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrForgetful, err)
	}
	return nil
}

// Words reads the operators' words of an earlier run. A word given under a clock that was wrong, or written
// by hand, has an end all the same: [MaxOverride] from now. What can't be read, or is no word, is left out
// and is in the error.
func (d *Dir) Words(now time.Time) (Words, error) {
	if d == nil {
		return Words{}, nil
	}
	text, err := os.ReadFile(d.words())
	if errors.Is(err, fs.ErrNotExist) {
		return Words{}, nil
	}
	var found keptWords
	if err == nil {
		err = d.read(d.words(), text, &found, wordsVersion)
	}
	if err != nil {
		return Words{}, err
	}
	latest := now.Add(MaxOverride)
	here := d.since(found.Written, now)
	soonest := func(until time.Time) time.Time {
		if until = here(until); until.After(latest) {
			return latest
		}
		return until
	}
	var w Words
	if ov := found.Override; ov != nil {
		if ov.Until = soonest(ov.Until); now.Before(ov.Until) {
			w.Override = ov
		}
	}
	for _, word := range found.Words.Words {
		if !word.Prefix.IsValid() {
			err = errors.New("one without a prefix is left out")
			continue
		}
		word.Until = soonest(word.Until)
		w.Words = append(w.Words, word)
	}
	return w, err
}
