package conntrack

import (
	"maps"
	"slices"
	"time"
)

// SilenceOptions has a scan look for conversations that go on after they were silent for long.
type SilenceOptions struct {
	InForce map[string]int // timeouts as they are in force, in seconds by sysctl name
	Floors  map[string]int // what is worth to know: silences of three quarters of this and more, likewise
}

// mostQuiet is how many quiet entries a scan remembers for the next one: the dump's order hardly changes, so they are
// mostly the same ones.
const mostQuiet = 1024

// silences finds conversations that go on after a silence, in the scans of one table.
type silences struct {
	asked    SilenceOptions
	at       time.Time // of this scan
	since    time.Time // when the timeouts in force were first seen: what was set under others tells nothing
	inForce  *limits
	floors   *limits
	index    *limits // the place of an entry's timeout in names
	names    []string
	repeats  uint32           // seconds that TCP which repeats itself, or waits for an answer, has at most
	before   map[uint32]quiet // entries that were quiet at the last scan, by id
	now      map[uint32]quiet
	longest  map[string]int
	previous time.Time // when before was seen
}

// quiet is an entry that has been silent for some seconds.
type quiet struct {
	silent, name uint32
}

// begin starts a scan.
func (q *silences) begin(asked SilenceOptions, now time.Time) {
	if q.since.IsZero() || !maps.Equal(asked.InForce, q.asked.InForce) || !maps.Equal(asked.Floors, q.asked.Floors) {
		q.asked, q.since, q.before = asked, now, nil
		q.names = slices.Sorted(maps.Keys(asked.Floors))
		index := make(map[string]int, len(q.names))
		for i, name := range q.names {
			index[name] = i
		}
		q.inForce, q.floors, q.index = newLimits(asked.InForce), newLimits(asked.Floors), newLimits(index)
		q.repeats = uint32(max(asked.InForce[tcpTimeout+"max_retrans"], asked.InForce[tcpTimeout+"unacknowledged"]))
	}
	q.at, q.now, q.longest = now, nil, nil
}

// look takes one entry in.
func (q *silences) look(e *entry) {
	limit, floor := q.inForce.of(e), q.floors.of(e)
	if limit == noTimeout || floor == noTimeout || e.timeout > limit ||
		e.protoInfo == protoInfoTCP && limit > q.repeats && e.timeout <= q.repeats {
		return
	}
	silent := limit - e.timeout
	if len(q.before) > 0 {
		if was, ok := q.before[e.id()]; ok && was.name == q.index.of(e) && q.spoke(was, silent) {
			if q.longest == nil {
				q.longest = make(map[string]int)
			}
			name := q.names[was.name]
			q.longest[name] = max(q.longest[name], int(was.silent))
		}
	}
	if silent < floor-floor/4 || len(q.now) >= mostQuiet {
		return
	}
	// The last packet of an entry that seems to be older than these timeouts came under others. What is left is in
	// whole seconds, so that a silence looks up to a second longer.
	if time.Duration(silent-1)*time.Second >= q.at.Sub(q.since) {
		return
	}
	if q.now == nil {
		q.now = make(map[uint32]quiet)
	}
	q.now[e.id()] = quiet{silent, q.index.of(e)}
}

// spoke says whether a packet came for an entry between the scans: it has been silent for less than it would have been.
// The kernel says whole seconds.
func (q *silences) spoke(was quiet, silent uint32) bool {
	between := uint32(q.at.Sub(q.previous) / time.Second)
	return silent+1 < was.silent+between
}

// end ends the scan and returns the longest silence, in seconds, after which a conversation went on, by timeout.
func (q *silences) end() map[string]int {
	q.before, q.previous = q.now, q.at
	return q.longest
}
