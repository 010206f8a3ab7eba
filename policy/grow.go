package policy

import "fmt"

// Grow is the step that makes the table larger, within a memory budget.
const Grow StepName = "grow"

// Names of the settings that make the table larger: see Documentation/networking/nf_conntrack-sysctl.rst.
const (
	tableMax     = "nf_conntrack_max"
	tableBuckets = "nf_conntrack_buckets"
)

// mostGrowth is how many times its size the table may grow to, whatever the memory: what a scan costs
// grows with it. It costs next to nothing up to smallTable entries: a table that was made tiny may grow to that.
const (
	mostGrowth = 8
	smallTable = 65_536
)

type grow struct{ plain }

// largest returns how many entries the table may grow to; 0 where it has no bound, or none that is known. It is one
// less than a round number: an administrator who puts his table right meanwhile writes one of those, and what looked
// like ctguard's own would be taken back with it.
func (*grow) largest(o Observation) int {
	before := o.Admin[tableMax]
	if before == 0 {
		return 0
	}
	return min(o.MaxEntries, max(mostGrowth*before, smallTable)-1)
}

func (g *grow) skipped(s situation) string {
	if before := s.Admin[tableMax]; g.largest(s.Observation) <= before {
		return fmt.Sprintf("nf_conntrack_max is %d and the memory budget has room for %d entries", before, s.MaxEntries)
	}
	return ""
}

// want wants the largest table that the memory budget has room for. The buckets grow with it: entries per
// bucket stay what they are, and so does the cost of a look-up. More of them than entries are of no use.
func (g *grow) want(s situation, p *Posture) []Event {
	if !s.works {
		return nil
	}
	before, largest := s.Admin[tableMax], g.largest(s.Observation)
	p.Settings[tableMax] = largest
	if buckets := s.Admin[tableBuckets]; buckets > 0 && before > 0 {
		inProportion := int(float64(buckets) * float64(largest) / float64(before))
		p.Settings[tableBuckets] = min(inProportion, max(buckets, largest))
	}
	return nil
}

func (*grow) done(o Observation) uint64 { return uint64(max(0, o.Capacity-o.Admin[tableMax])) }

// quiet reports whether the entries fit the table as the administrator has it, below the leave mark.
func (*grow) quiet(s situation, _ float64) bool {
	return 100*float64(s.Count) < s.marks.Leave*float64(s.Admin[tableMax])
}

func (*grow) brought(_ situation, done uint64, _ outcome) string {
	return fmt.Sprintf("made room for %d more entries", done)
}
