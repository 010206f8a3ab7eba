package state

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"syscall"
)

// Replace writes a file so that a kill leaves the old one or the new one, never a part of one.
func Replace(path string, text []byte) error { return replace(path, text, false) }

// ReplaceSynced is [Replace] so that a crash of the machine leaves the old file or the new one, too, and the
// new one once it has returned: it waits for the disk.
func ReplaceSynced(path string, text []byte) error {
	if err := replace(path, text, true); err != nil {
		return err
	}
	return SyncDir(filepath.Dir(path))
}

// replace writes a new file beside path, NAME.NNN, and renames it over the old one.
func replace(path string, text []byte, sync bool) error {
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	giveToOwner(f)
	if sync && err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}

// giveToOwner gives a file to the owner of its directory: what root's ctguard revert writes there, the daemon must be
// able to read, which may run as a user of its own.
func giveToOwner(f *os.File) {
	if os.Geteuid() != 0 {
		return
	}
	if dir, err := os.Stat(filepath.Dir(f.Name())); err == nil {
		if owner, ok := dir.Sys().(*syscall.Stat_t); ok && owner.Uid != 0 {
			_ = f.Chown(int(owner.Uid), int(owner.Gid)) // what can't be given away is root's, as ever
		}
	}
}

// SyncDir makes a rename or removal in dir outlast a crash of the machine.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("sync state directory: %w", err)
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return fmt.Errorf("sync state directory: %w", err)
	}
	return nil
}

// torn is the name of a file that [Replace] did not get to rename: NAME.json.NNN, or NAME.json.new of older
// versions.
var torn = regexp.MustCompile(`^([a-z0-9-]+\.json)\.([0-9]+|new)$`)

// RemoveTorn removes what a kill left of the file at path while it was being replaced. What can't be removed
// is no reason not to go on.
func RemoveTorn(path string) { removeTorn(filepath.Dir(path), filepath.Base(path)) }

// removeTorn removes what a kill left of a file in dir, or of all files without a name.
func removeTorn(dir, name string) {
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		parts := torn.FindStringSubmatch(e.Name())
		if e.Type().IsRegular() && parts != nil && (name == "" || parts[1] == name) {
			_ = os.Remove(filepath.Join(dir, e.Name()))
		}
	}
}
