package state

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// kernelVersion is the version of the file with what the kernel can do. What is asked of the kernel is a part of it: a
// question more, or another one, is another version.
const kernelVersion = 1

// keptKernel is that file.
type keptKernel struct {
	Version int             `json:"version"`
	Boot    string          `json:"boot"` // the kernel's own name for the time since it was started
	Found   json.RawMessage `json:"found"`
}

func (d *Dir) kernel() string { return filepath.Join(d.path, "kernel.json") }

// boot reads the name of the time since this kernel was started.
func boot(proc string) (string, error) {
	text, err := os.ReadFile(filepath.Join(proc, "sys/kernel/random/boot_id"))
	return strings.TrimSpace(string(text)), err
}

// KeepKernel writes down what this kernel was found to be able to do, for the next process: while it runs, that stays
// as it is.
func (d *Dir) KeepKernel(proc string, found any) error {
	if d == nil {
		return nil
	}
	text, err := json.Marshal(found)
	if err != nil {
		return err
	}
	kept := keptKernel{Version: kernelVersion, Found: text}
	if kept.Boot, err = boot(proc); err == nil {
		text, err = json.Marshal(kept)
	}
	if err == nil {
		err = d.replace(d.kernel(), append(text, '\n'))
	}
	if err != nil {
		return fmt.Errorf("keep what this kernel can do: %w", err)
	}
	return nil
}

// Kernel reads what an earlier process found this kernel to be able to do. It returns false where there is nothing that
// counts: no file, one of another version, or of the time before the kernel was started.
func (d *Dir) Kernel(proc string, found any) (bool, error) {
	if d == nil {
		return false, nil
	}
	text, err := os.ReadFile(d.kernel())
	if err != nil {
		return false, nil //nolint:nilerr // what is wrong with the directory [Dir.Lock] says
	}
	var kept keptKernel
	err = d.read(d.kernel(), text, &kept, kernelVersion)
	var now string
	if err == nil {
		now, err = boot(proc)
	}
	counts := err == nil && kept.Version == kernelVersion && kept.Boot == now && now != ""
	if counts {
		err = json.Unmarshal(kept.Found, found)
	}
	if err != nil {
		return false, fmt.Errorf("read what this kernel can do: %w", err)
	}
	return counts, nil
}
