package policy

import "time"

// grace leaves a class of flows to limits on the sources that fill it, for a moment. Limiting those stops the
// flood and hurts nobody else; a purge would hide them from the next census, and a budget for the class would
// be shared by everybody who is in it.
type grace struct {
	since map[FlowClass]time.Time // when it began
}

// Sources above their fair share that hold this part of a class are waited for: for as long as two
// censuses take, and, until they are limited, up to this fill in percent.
const (
	sourcesPart = 0.5
	waitAtMost  = 1500 * time.Millisecond
	waitBelow   = 82
)

// suspects is whose the transient entries of a census are: how many are of sources above their fair share that can
// be limited, and how many of those that this census has just had limited.
type suspects struct{ heavy, limited float64 }

// leaves reports whether a class is left to limits.
func (g *grace) leaves(f classCount, whose suspects, s situation) bool {
	part := sourcesPart * float64(f.entries) * float64(s.Count) / float64(max(s.Census.Seen, 1))
	began, waiting := g.since[f.class]
	if !waiting {
		if whose.heavy < part {
			return false
		}
		if g.since == nil {
			g.since = make(map[FlowClass]time.Time)
		}
		began, g.since[f.class] = s.Time, s.Time
	}
	return s.Time.Sub(began) < waitAtMost && (s.fill < waitBelow || whose.limited >= part)
}
