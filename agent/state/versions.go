package state

import (
	"encoding/json"
	"fmt"
	"os"
)

// read reads what a file says into out, unless a newer ctguard wrote it, whose words may mean something else: that one
// is an error, and is kept until something is to be written in its place, and then beside it.
func (d *Dir) read(path string, text []byte, out any, known int) error {
	var is struct {
		Version int `json:"version"`
	}
	if err := json.Unmarshal(text, &is); err != nil {
		return err
	}
	if is.Version > known {
		d.newer[path] = is.Version
		return fmt.Errorf("%s has version %d, and this ctguard knows versions up to %d: it is left to a newer one",
			path, is.Version, known)
	}
	return json.Unmarshal(text, out)
}

// replace is [Replace] that keeps what a newer ctguard wrote.
func (d *Dir) replace(path string, text []byte) error {
	if version := d.newer[path]; version != 0 {
		if err := os.Rename(path, fmt.Sprintf("%s.v%d", path, version)); err != nil {
			return err
		}
		delete(d.newer, path)
	}
	return Replace(path, text)
}
