package sysctl

import (
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"

	"ctguard/agent/state"
)

// journalName is the journal's file name in the state directory, unless another network namespace has
// one there: see [load].
const journalName = "settings.json"

// Journal is what was changed and what it was before. It lives on disk from before the first change
// until everything is back.
type Journal struct {
	Version   int              `json:"version"`   // of this format; see [journalVersion]
	Boot      string           `json:"boot"`      // a reboot puts settings back by itself
	Namespace uint64           `json:"namespace"` // inode of the network namespace
	Settings  map[string]Entry `json:"settings"`
	Sum       string           `json:"sum"` // of everything above; see [Journal.sum]
	file      string           // its name in the state directory
}

// journalVersion is the version of the journal's format. Version 0 had no sum.
const journalVersion = 1

// Entry is one changed setting.
type Entry struct {
	First   int `json:"first"`   // the administrator's value
	Before  int `json:"before"`  // the value before the last write: that write may not have happened
	Written int `json:"written"` // what ctguard wrote last
}

// here returns an empty journal of this boot and the network namespace of the calling thread.
func here(proc string) (Journal, error) {
	boot, err := os.ReadFile(filepath.Join(proc, "sys/kernel/random/boot_id"))
	if err != nil {
		return Journal{}, fmt.Errorf("read boot id: %w", err)
	}
	var st syscall.Stat_t
	if err := syscall.Stat(filepath.Join(proc, "thread-self/ns/net"), &st); err != nil {
		return Journal{}, fmt.Errorf("read network namespace: %w", err)
	}
	return Journal{Version: journalVersion, Boot: strings.TrimSpace(string(boot)), Namespace: st.Ino,
		Settings: make(map[string]Entry), file: journalName}, nil
}

// ErrDamaged says that the journal can't be understood: what it knew of first values is lost.
var ErrDamaged = errors.New("the journal is damaged")

// SetAside renames the damaged journals in dir, for somebody to look at, and returns their new names.
func SetAside(dir string) (string, error) {
	files, err := filepath.Glob(filepath.Join(dir, "settings*.json"))
	if err != nil {
		return "", fmt.Errorf("set the damaged journal aside: %w", err)
	}
	var aside []string
	for _, path := range files {
		if _, err := read(path); !errors.Is(err, ErrDamaged) {
			continue
		}
		if err := os.Rename(path, path+".damaged"); err != nil {
			return "", fmt.Errorf("set the damaged journal aside: %w", err)
		}
		aside = append(aside, path+".damaged")
	}
	if aside == nil {
		return "", errors.New("set the damaged journal aside: there is none")
	}
	return strings.Join(aside, ", "), state.SyncDir(dir)
}

// sum returns a checksum of the journal: a flipped bit must not become a value that is written in silence.
func (j Journal) sum() string {
	j.Sum = ""
	text, _ := json.Marshal(j) // maps come in the order of their keys; nothing in it can fail
	return fmt.Sprintf("%08x", crc32.ChecksumIEEE(text))
}

// settingName is what a journal may name: anything else could be a path that leads elsewhere.
var settingName = regexp.MustCompile(`^(nf_conntrack_[a-z0-9_]+|` + Timestamps + `)$`)

// check says what is wrong with a journal that was read. One of a newer version is not damaged, but nothing
// to guess about either.
func (j Journal) check() error {
	switch {
	case j.Version > journalVersion:
		return fmt.Errorf("it has version %d and this ctguard knows versions up to %d: "+
			"run ctguard revert of the version that wrote it", j.Version, journalVersion)
	case j.Version > 0 && j.Sum != j.sum():
		return fmt.Errorf("%w: its sum is %s, not %s", ErrDamaged, j.sum(), j.Sum)
	}
	for name := range j.Settings {
		if !settingName.MatchString(name) {
			return fmt.Errorf("%w: it names a setting %q", ErrDamaged, name)
		}
	}
	return nil
}

// load reads the journal that an agent in this boot and namespace has left in dir. A journal of another
// boot means nothing; one of another namespace is left for the agent that comes back there, and this
// namespace's gets another name.
func load(dir, proc string) (Journal, error) {
	empty, err := here(proc)
	if err != nil {
		return empty, err
	}
	own := ownName(empty)
	state.RemoveTorn(filepath.Join(dir, own))
	state.RemoveTorn(filepath.Join(dir, journalName))
	for _, name := range []string{own, journalName} {
		j, err := read(filepath.Join(dir, name))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return empty, err
		}
		if j.Boot != empty.Boot || j.Settings == nil {
			continue
		}
		if j.Namespace == empty.Namespace {
			j.file = name
			return j, nil
		}
		empty.file = own
	}
	return empty, nil
}

// ownName is the name of a namespace's journal where another one's has the usual name.
func ownName(j Journal) string { return fmt.Sprintf("settings-%d.json", j.Namespace) }

// read reads one journal.
func read(path string) (j Journal, err error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return j, fmt.Errorf("read journal: %w", err)
	}
	if err := json.Unmarshal(text, &j); err != nil {
		return j, fmt.Errorf("read journal %s: %w: %w", path, ErrDamaged, err)
	}
	if err := j.check(); err != nil {
		return j, fmt.Errorf("read journal %s: %w", path, err)
	}
	return j, nil
}

// save writes the journal to dir so that it survives a crash of the machine: a new file, synced,
// renamed over the old one, and the directory synced. An empty journal is removed.
func (j Journal) save(dir string) error {
	path := filepath.Join(dir, j.file)
	if len(j.Settings) == 0 {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove journal: %w", err)
		}
		return state.SyncDir(dir)
	}
	j.Version = journalVersion
	j.Sum = j.sum()
	text, err := json.MarshalIndent(j, "", "  ")
	if err != nil {
		return fmt.Errorf("write journal: %w", err)
	}
	if err := state.ReplaceSynced(path, append(text, '\n')); err != nil {
		return fmt.Errorf("write journal: %w", err)
	}
	return nil
}
