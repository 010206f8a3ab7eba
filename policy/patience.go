package policy

import "time"

// patience leaves a class of flows to limits on the sources that fill it, for a moment. Limiting those stops the
// flood and hurts nobody else; a purge would hide them from the next census, and a budget for the class would
// hold back everybody who is in it.
type patience struct {
	since map[FlowClass]time.Time // when it began
}

// Sources above their fair share that hold this part of a class are waited for: for as long as two
// censuses take, and, until they are held back, up to this fill in percent.
const (
	sourcesPart = 0.5
	waitAtMost  = 1500 * time.Millisecond
	waitBelow   = 82
)

// blame is how many passing entries are of sources above their fair share that can be held back, and of those
// that a census has just had held back.
type blame struct{ heavy, due float64 }

// leaves reports whether a class is left to limits.
func (p *patience) leaves(f found, whose blame, o Observation, r reading) bool {
	part := sourcesPart * float64(f.entries) * float64(o.Count) / float64(max(o.Census.Seen, 1))
	began, waiting := p.since[f.class]
	if !waiting {
		if whose.heavy < part {
			return false
		}
		if p.since == nil {
			p.since = make(map[FlowClass]time.Time)
		}
		began, p.since[f.class] = o.Time, o.Time
	}
	return o.Time.Sub(began) < waitAtMost && (r.fill < waitBelow || whose.due >= part)
}
