package state

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"ctguard/policy"
)

// Dir is a state directory; nil is that of a dry run. It is not safe for concurrent use.
type Dir struct {
	path  string
	noted []policy.Selector // what is on disk as living untracked, as far as this process wrote it

	keptDay time.Time // when the ordinary day on disk last learnt something, as far as this process wrote it
	keptAt  time.Time // when it was last written, or tried to be

	keepFault error // what went wrong then

	newer      map[string]int // versions of files that a newer ctguard wrote
	keptLogins keptLogins     // the last that were written; the surveyor's
	given      *retimedNote   // the last that was read or written; the loop's
	uptime     uptime         // tests have their own
}

// At returns the state directory at path, which need not exist yet.
func At(path string) *Dir {
	return &Dir{path: path, newer: make(map[string]int), uptime: kernelUptime}
}

// Lock makes the directory, sees that it can be written, locks it until the closer is closed, and removes
// what a kill left of files that were being replaced.
func (d *Dir) Lock() (io.Closer, error) {
	if err := os.MkdirAll(d.path, 0o755); err != nil {
		return nil, fmt.Errorf("state directory: %w (state_dir names another)", err)
	}
	f, err := os.OpenFile(filepath.Join(d.path, "lock"), os.O_CREATE|os.O_RDWR|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("state directory cannot be written: %w (state_dir names another)", err)
	}
	giveToOwner(f)
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("state directory %s is in use by another ctguard: give each namespace its own state_dir",
			d.path)
	}
	removeTorn(d.path, "")
	return f, nil
}

// untracked returns where it is noted which services live untracked: after a kill -9 the next start must know.
func (d *Dir) untracked() string { return filepath.Join(d.path, "untracked.json") }

// NoteUntracked writes down which services live untracked, before they do; none takes the note away. A reboot
// ends all connections, so the note need not outlive one.
func (d *Dir) NoteUntracked(selectors []policy.Selector) error {
	if d == nil || slices.Equal(selectors, d.noted) {
		return nil
	}
	var err error
	if len(selectors) == 0 {
		err = d.ForgetUntracked()
	} else if text, fault := json.Marshal(selectors); fault == nil {
		err = Replace(d.untracked(), append(text, '\n'))
	}
	if err != nil {
		return fmt.Errorf("note what is untracked: %w", err)
	}
	d.noted = selectors
	return nil
}

// Untracked reads the note: which services lived untracked when the process that wrote it ended; there is
// false where there is no note.
func (d *Dir) Untracked() (selectors []policy.Selector, there bool, err error) {
	if d == nil {
		return nil, false, nil
	}
	text, err := os.ReadFile(d.untracked())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, false, nil
	}
	if err == nil {
		err = json.Unmarshal(text, &selectors)
	}
	return selectors, true, err
}

// ForgetUntracked takes the note away, if there is one.
func (d *Dir) ForgetUntracked() error {
	if d == nil {
		return nil
	}
	if err := os.Remove(d.untracked()); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
