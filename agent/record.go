package agent

import (
	"bufio"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"

	"ctguard/policy"
)

// maxRecording bounds a recording on disk, in bytes: weeks of calm, hours of attack.
const maxRecording = 100 << 20

// frame is one tick of a recording: what was seen and what was decided. What rarely changes is
// written only when it did.
type frame struct {
	Observation policy.Observation `json:"o"`
	Host        *policy.Host       `json:"host,omitempty"`
	Words       *memory            `json:"words,omitempty"` // the operator's, if they changed
	Level       int                `json:"level"`
}

// recordingHead is the first line of a recording.
type recordingHead struct {
	Version string        `json:"version"`
	Policy  policy.Config `json:"policy"`
}

// recorder writes observations and decisions to a file: gzip over a line of JSON each.
type recorder struct {
	file  *os.File
	zip   *gzip.Writer
	json  *json.Encoder
	host  policy.Host
	words memory
	full  bool
}

// newRecorder makes the file, which must not exist.
func newRecorder(path string, c policy.Config) (*recorder, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("record: %w", err)
	}
	zip := gzip.NewWriter(f)
	r := &recorder{file: f, zip: zip, json: json.NewEncoder(zip)}
	return r, r.json.Encode(recordingHead{Version, c})
}

// errRecordingFull says that a recording has reached its bound.
var errRecordingFull = errors.New("the recording has reached its bound and goes no further")

// record writes one tick.
func (r *recorder) record(o policy.Observation, words memory, level int) error {
	if r.full {
		return errRecordingFull
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

// close ends the recording.
func (r *recorder) close() error { return errors.Join(r.zip.Close(), r.file.Close()) }

// ReplayedTick is one tick of a replay beside what was recorded.
type ReplayedTick struct {
	Observation policy.Observation
	Decision    policy.Decision
	Recorded    int // the level then
}

// Replay runs a recording through a machine with a configuration, or with the one it was recorded
// with if c is nil, and calls each for every tick. A recording that breaks off, as after a crash, is
// replayed up to there.
func Replay(in io.Reader, c *policy.Config, each func(ReplayedTick)) error {
	zip, err := gzip.NewReader(bufio.NewReader(in))
	if err != nil {
		return fmt.Errorf("replay: this is no recording of ctguard run --record: %w", err)
	}
	lines := json.NewDecoder(zip)
	var head recordingHead
	if err := lines.Decode(&head); err != nil {
		return fmt.Errorf("replay: read the recording's head: %w", err)
	}
	if c == nil {
		if faults := head.Policy.Validate(); len(faults) > 0 {
			return fmt.Errorf("replay: the recording's configuration: %w", faults[0])
		}
		c = &head.Policy
	}
	m := policy.New(*c)
	var host policy.Host
	for {
		var f frame
		if err := lines.Decode(&f); errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("replay: %w", err)
		}
		if f.Host != nil {
			host = *f.Host
		}
		if f.Words != nil {
			m.SetOverride(f.Words.Override)
			for _, w := range f.Words.Manual {
				m.SetManual(w)
			}
		}
		o := f.Observation
		o.Host = host
		each(ReplayedTick{o, m.Tick(o), f.Level})
	}
}
