package record

import (
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"slices"
	"time"

	"ctguard/agent/state"
	"ctguard/policy"
)

// maxRecording bounds a recording on disk, in bytes: weeks of calm, hours of attack.
const maxRecording = 100 << 20

// frame is one tick of a recording: what was seen and what was decided. What rarely changes is
// written only when it did.
type frame struct {
	Observation policy.Observation `json:"o"`
	Host        *policy.Host       `json:"host,omitempty"`
	Words       *state.Words       `json:"words,omitempty"` // the operator's, if they changed
	Level       int                `json:"level"`
}

// format is the version of recordings. Version 0 said none.
const format = 1

// head is the first line of a recording.
type head struct {
	Format  int                `json:"format"`
	Version string             `json:"version"`
	Policy  policy.Config      `json:"policy"`
	Day     policy.OrdinaryDay `json:"day"` // what was known when the recording began
}

// Recorder writes observations and decisions to a file: gzip over a line of JSON each.
type Recorder struct {
	file  *os.File
	zip   *gzip.Writer
	json  *json.Encoder
	host  policy.Host
	words state.Words
	full  bool
	begun time.Time // of the first tick
}

// New makes the file, which must not exist, for decisions of a configuration that begin with an ordinary day.
func New(path, version string, c policy.Config, day policy.OrdinaryDay) (*Recorder, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("record: %w", err)
	}
	zip := gzip.NewWriter(f)
	r := &Recorder{file: f, zip: zip, json: json.NewEncoder(zip)}
	return r, r.json.Encode(head{format, version, c, day})
}

// ErrFull says that a recording has reached its bound.
var ErrFull = errors.New("the recording has reached its bound and goes no further")

// Record writes one tick.
func (r *Recorder) Record(o policy.Observation, words state.Words, level int) error {
	if r.full {
		return ErrFull
	}
	if r.begun.IsZero() {
		r.begun = o.Time
	}
	f := frame{Observation: r.unset(o), Level: level}
	if !reflect.DeepEqual(o.Host, r.host) {
		f.Host, r.host = &o.Host, o.Host
	}
	if !reflect.DeepEqual(words, r.words) {
		r.words = words
		unset := r.unsetWords(words)
		f.Words = &unset
	}
	if err := r.json.Encode(f); err != nil {
		return fmt.Errorf("record: %w", err)
	}
	if size, err := r.file.Seek(0, io.SeekCurrent); err == nil && size > maxRecording {
		r.full = true
	}
	return nil
}

// unset returns an observation as it would be had nobody set the clock since the recording began: a process goes by a
// clock that can't be set, and what is read from a file has the wall clock alone.
func (r *Recorder) unset(o policy.Observation) policy.Observation {
	o.Time, o.Adopted = r.byFirst(o.Time), r.byFirst(o.Adopted)
	if o.Census != nil {
		census := *o.Census
		census.Time = r.byFirst(census.Time)
		o.Census = &census
	}
	return o
}

// unsetWords does the same for operators' words.
func (r *Recorder) unsetWords(w state.Words) state.Words {
	if w.Override != nil {
		override := *w.Override
		override.Until = r.byFirst(override.Until)
		w.Override = &override
	}
	w.Words = slices.Clone(w.Words)
	for i := range w.Words {
		w.Words[i].Until = r.byFirst(w.Words[i].Until)
	}
	return w
}

// byFirst returns a time by the clock of the first tick.
func (r *Recorder) byFirst(t time.Time) time.Time {
	if t.IsZero() {
		return t
	}
	return r.begun.Add(t.Sub(r.begun))
}

// Close ends the recording.
func (r *Recorder) Close() error { return errors.Join(r.zip.Close(), r.file.Close()) }
