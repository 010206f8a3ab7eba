package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"ctguard/policy"
)

// memory is what survives a restart besides the journal: the operator's words.
type memory struct {
	Override *policy.Override `json:"override"`
	Manual   []policy.Manual  `json:"manual"`
}

// memoryPath returns where the memory is kept.
func (a *Agent) memoryPath() string { return filepath.Join(a.config.StateDir, "operator.json") }

// errForgetful says that the operator's words could not be written down.
var errForgetful = errors.New("done, but a restart will forget it")

// remember writes the operator's words down.
func (a *Agent) remember() error {
	if a.dryRun {
		return nil
	}
	text, err := json.MarshalIndent(memory{a.machine.Override(), a.machine.Manual()}, "", "  ")
	if err == nil {
		err = replaceFile(a.memoryPath(), append(text, '\n'))
	}
	if err != nil {
		return fmt.Errorf("%w: %w", errForgetful, err)
	}
	return nil
}

// restore reads the operator's words of an earlier run. A memory that can't be read is no reason
// not to guard the table.
func (a *Agent) restore() {
	if a.dryRun {
		return
	}
	text, err := os.ReadFile(a.memoryPath())
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	var m memory
	if err == nil {
		err = json.Unmarshal(text, &m)
	}
	if a.trouble("operator's words", err); err != nil {
		return
	}
	// A word given under a clock that was wrong, or written by hand, has an end all the same.
	latest := time.Now().Add(maxOverride)
	soonest := func(until time.Time) time.Time {
		if until.After(latest) {
			return latest
		}
		return until
	}
	if m.Override != nil && time.Now().Before(m.Override.Until) {
		m.Override.Until = soonest(m.Override.Until)
		a.machine.SetOverride(m.Override)
	}
	for _, word := range m.Manual {
		if !word.Prefix.IsValid() {
			a.trouble("operator's words", errors.New("one without a prefix is left out"))
			continue
		}
		word.Until = soonest(word.Until)
		a.machine.SetManual(word)
	}
}

// reload reads the configuration file again. A faulty one changes nothing and is told of. It
// returns the surveyor of the new configuration, or nil.
func (a *Agent) reload() *surveyor {
	// A file that was there and is not now is being written anew, or lost: its allowlist must not be
	// lost with it.
	c, err := LoadConfig(a.config.Path, a.config.Absent)
	c = c.In(a.config.Namespace)
	if err == nil && !slices.Equal(c.Namespaces, a.config.Namespaces) {
		err = errOtherNamespaces
	} else if err == nil && (c.Socket != a.config.Socket || c.StateDir != a.config.StateDir || c.Metrics != a.config.Metrics || c.Group != a.config.Group) {
		err = errors.New("socket, group, state_dir and metrics.listen change only with a restart")
	}
	if err != nil {
		a.emit(policy.Event{Kind: policy.ConfigEvent, Reason: "not reloaded, nothing changed: " + err.Error()})
		return nil
	}
	a.config = c
	a.machine.Reconfigure(c.Policy)
	a.surveyor = &surveyor{host: a.surveyor.host, config: c, lacking: a.surveyor.lacking}
	a.emit(policy.Event{Kind: policy.ConfigEvent, Reason: "reloaded " + c.Path})
	return a.surveyor
}
