package record

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"ctguard/policy"
)

// Tick is one tick of a replay beside what was recorded.
type Tick struct {
	Observation policy.Observation
	Decision    policy.Decision
	Recorded    int // the level then
}

// Replay runs a recording through a machine with a configuration, or with the one it was recorded
// with if c is nil, and calls each for every tick. A recording that breaks off, as after a crash, is
// replayed up to there.
func Replay(in io.Reader, c *policy.Config, each func(Tick)) error {
	zip, err := gzip.NewReader(bufio.NewReader(in))
	if err != nil {
		return fmt.Errorf("replay: this is no recording of ctguard run --record: %w", err)
	}
	lines := json.NewDecoder(zip)
	first, err := readHead(lines)
	if err != nil {
		return fmt.Errorf("replay: read the recording's head: %w", err)
	}
	if first.Format > format {
		return fmt.Errorf("replay: the recording has format %d, and this ctguard knows formats up to %d: "+
			"replay it with ctguard %s, which made it", first.Format, format, first.Version)
	}
	if c == nil {
		if faults := first.Policy.Validate(); len(faults) > 0 {
			return fmt.Errorf("replay: the recording's configuration: %w", faults[0])
		}
		c = &first.Policy
	}
	m := policy.New(*c)
	m.Recall(first.Day)
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
			for _, w := range f.Words.Words {
				m.Say(w)
			}
		}
		o := f.Observation
		o.Host = host
		each(Tick{o, m.Tick(o), f.Level})
	}
}

// readHead reads the first line. Format 0 calls a step's settle time by another name.
func readHead(lines *json.Decoder) (head, error) {
	var text json.RawMessage
	var first head
	err := lines.Decode(&text)
	if err == nil {
		err = json.Unmarshal(text, &first)
	}
	if err == nil && first.Format < 1 {
		err = json.Unmarshal(bytes.ReplaceAll(text, []byte(`"Hold":`), []byte(`"Settle":`)), &first)
	}
	return first, err
}
