package sysctl

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
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
	Boot      string           `json:"boot"`      // a reboot puts settings back by itself
	Namespace uint64           `json:"namespace"` // inode of the network namespace
	Settings  map[string]Entry `json:"settings"`
	file      string           // its name in the state directory
}

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
	return Journal{strings.TrimSpace(string(boot)), st.Ino, make(map[string]Entry), journalName}, nil
}

// ErrDamaged says that the journal can't be understood: what it knew of first values is lost.
var ErrDamaged = errors.New("the journal is damaged")

// SetAside renames a damaged journal in dir, for somebody to look at, and returns its new name.
func SetAside(dir string) (string, error) {
	files, err := filepath.Glob(filepath.Join(dir, "settings*.json"))
	if err != nil {
		return "", fmt.Errorf("set the damaged journal aside: %w", err)
	}
	for _, path := range files {
		if _, err := read(path); !errors.Is(err, ErrDamaged) {
			continue
		}
		if err := os.Rename(path, path+".damaged"); err != nil {
			return "", fmt.Errorf("set the damaged journal aside: %w", err)
		}
		return path + ".damaged", state.SyncDir(dir)
	}
	return "", errors.New("set the damaged journal aside: there is none")
}

// load reads the journal that an agent in this boot and namespace has left in dir. A journal of another
// boot means nothing; one of another namespace is left for the agent that comes back there, and this
// namespace's gets another name.
func load(dir, proc string) (Journal, error) {
	empty, err := here(proc)
	if err != nil {
		return empty, err
	}
	own := fmt.Sprintf("settings-%d.json", empty.Namespace)
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

// read reads one journal.
func read(path string) (j Journal, err error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return j, fmt.Errorf("read journal: %w", err)
	}
	if err := json.Unmarshal(text, &j); err != nil {
		return j, fmt.Errorf("read journal %s: %w: %w", path, ErrDamaged, err)
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
	text, err := json.MarshalIndent(j, "", "  ")
	if err != nil {
		return fmt.Errorf("write journal: %w", err)
	}
	if err := state.ReplaceSynced(path, append(text, '\n')); err != nil {
		return fmt.Errorf("write journal: %w", err)
	}
	return nil
}
