package record

import (
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"

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
	f := frame{Observation: o, Level: level}
	if !reflect.DeepEqual(o.Host, r.host) {
		f.Host, r.host = &o.Host, o.Host
	}
	if !reflect.DeepEqual(words, r.words) {
		f.Words, r.words = &words, words
	}
	if err := r.json.Encode(f); err != nil {
		return fmt.Errorf("record: %w", err)
	}
	if size, err := r.file.Seek(0, io.SeekCurrent); err == nil && size > maxRecording {
		r.full = true
	}
	return nil
}

// Close ends the recording.
func (r *Recorder) Close() error { return errors.Join(r.zip.Close(), r.file.Close()) }
