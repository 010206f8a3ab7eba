package sysctl

import (
	"errors"
	"fmt"
	"maps"
	"slices"
)

// Keeper brings settings to what is wanted and remembers what they were. It is not safe for
// concurrent use.
type Keeper struct {
	*Settings
	dir     string
	journal Journal
	foreign map[string]bool // settings somebody else changed: left alone until they are no longer wanted
}

// NewKeeper returns a keeper with its journal in dir and takes over what an earlier process left in
// it. Without a dir the keeper can only read. proc is "/proc" except in tests.
func NewKeeper(proc, dir string) (*Keeper, error) {
	settings, err := NewSettings(proc)
	if err != nil {
		return nil, err
	}
	var journal Journal
	if dir != "" {
		if journal, err = load(dir, proc); err != nil {
			return nil, err
		}
	}
	return &Keeper{settings, dir, journal, make(map[string]bool)}, nil
}

// Change is one setting that was written, or that was left alone because somebody else had.
type Change struct {
	Name    string `json:"name"` // without net.netfilter.
	From    int    `json:"from"`
	To      int    `json:"to"`
	Foreign bool   `json:"foreign"` // somebody else wrote From since: it was left alone
}

// String says what happened to the setting.
func (c Change) String() string {
	if c.Foreign {
		return fmt.Sprintf("%s is %d now, which somebody else wrote: left alone", c.Name, c.From)
	}
	return fmt.Sprintf("%s %d -> %d", c.Name, c.From, c.To)
}

// Admin returns every setting as the administrator has it.
func (k *Keeper) Admin() (map[string]int, error) {
	all, err := k.All()
	if err != nil {
		return nil, err
	}
	for name, e := range k.journal.Settings {
		if now := all[name]; now == e.Written || now == e.Before {
			all[name] = e.First
		}
	}
	return all, nil
}

// Apply brings every setting in wanted to its value, and every other setting back to what it was.
// It can be called any number of times; what it could not do is in the error, the rest is done.
func (k *Keeper) Apply(wanted map[string]int) ([]Change, error) {
	before := maps.Clone(k.journal.Settings)
	changes, errs := k.plan(wanted)
	// The first values are on disk before anything is changed.
	if err := k.saveIfChanged(before); err != nil {
		errs = append(errs, err)
		changes = k.planWithoutDisk(before, changes)
	}
	planned := maps.Clone(k.journal.Settings)
	done := changes[:0]
	for _, c := range changes {
		if !c.Foreign {
			if err := k.write(c.Name, c.To); err != nil {
				errs = append(errs, err)
				continue
			}
		}
		done = append(done, c)
		if e, ours := k.journal.Settings[c.Name]; ours && c.To == e.First {
			delete(k.journal.Settings, c.Name)
		}
	}
	errs = append(errs, k.saveIfChanged(planned))
	return done, errors.Join(errs...)
}

// planWithoutDisk keeps of changes, planned since the journal was before, what needs no journal on
// disk: ways back to a first value that is there already. A full disk is no reason to leave a
// setting changed.
func (k *Keeper) planWithoutDisk(before map[string]Entry, changes []Change) []Change {
	k.journal.Settings = maps.Clone(before)
	return slices.DeleteFunc(changes, func(c Change) bool {
		e, ours := before[c.Name]
		return c.Foreign || !ours || c.To != e.First
	})
}

// saveIfChanged writes the journal to disk if it differs from what it was.
func (k *Keeper) saveIfChanged(before map[string]Entry) error {
	if maps.Equal(before, k.journal.Settings) {
		return nil
	}
	return k.journal.save(k.dir)
}

// plan enters what is about to be written into the journal in memory and returns it in order, and
// what could not be read.
func (k *Keeper) plan(wanted map[string]int) ([]Change, []error) {
	maps.DeleteFunc(k.foreign, func(name string, _ bool) bool { _, still := wanted[name]; return !still })
	names := maps.Clone(wanted)
	if names == nil {
		names = make(map[string]int)
	}
	for name := range k.journal.Settings {
		names[name] = 0
	}
	var changes []Change
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(names)) {
		if !k.exists(name) || k.foreign[name] {
			continue
		}
		now, err := k.Read(name)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		to, want := wanted[name]
		if c, needed := k.planOne(name, now, asKept(name, to), want); needed {
			changes = append(changes, c)
		}
	}
	return changes, errs
}

// planOne enters one setting, which is now at a value, into the journal, and returns the change
// that it needs.
func (k *Keeper) planOne(name string, now, to int, want bool) (Change, bool) {
	e, ours := k.journal.Settings[name]
	if ours && !slices.Contains([]int{e.First, e.Before, e.Written}, now) {
		delete(k.journal.Settings, name)
		if want {
			k.foreign[name] = true
		}
		return Change{Name: name, From: now, To: now, Foreign: true}, true
	}
	if !ours {
		e.First = now
	}
	if !want {
		to = e.First
	}
	if now == to {
		if !want {
			delete(k.journal.Settings, name)
		}
		return Change{}, false
	}
	e.Before, e.Written = now, to
	k.journal.Settings[name] = e
	return Change{Name: name, From: now, To: to}, true
}

// Revert puts every setting back to what it was.
func (k *Keeper) Revert() ([]Change, error) { return k.Apply(nil) }
