package policy

import "fmt"

// Names of the settings that make the table larger: see Documentation/networking/nf_conntrack-sysctl.rst.
const (
	tableMax     = "nf_conntrack_max"
	tableBuckets = "nf_conntrack_buckets"
)

// mostGrowth is how many times its size the table may grow to, whatever the memory: what a scan costs
// grows with it.
const mostGrowth = 8

// room returns how large the table may grow.
func room(o Observation) int { return min(o.Room, mostGrowth*o.Admin[tableMax]) }

func growSkipped(o Observation) string {
	if most := o.Admin[tableMax]; room(o) <= most {
		return fmt.Sprintf("nf_conntrack_max is %d and the memory budget has room for %d entries", most, o.Room)
	}
	return ""
}

// grown returns the settings of the largest table that the memory budget has room for. The buckets
// grow with it: entries per bucket stay what they are, and so does the cost of a look-up.
func grown(o Observation) map[string]int {
	before := o.Admin[tableMax]
	settings := map[string]int{tableMax: room(o)}
	if buckets := o.Admin[tableBuckets]; buckets > 0 && before > 0 {
		settings[tableBuckets] = int(float64(buckets) * float64(room(o)) / float64(before))
	}
	return settings
}

// fitsBefore reports whether the entries fit the table as the administrator has it, below grow's leave mark.
func (m *Machine) fitsBefore(o Observation) bool {
	step, _ := m.cfg.Step(Grow)
	return 100*float64(o.Count) < step.Leave*float64(o.Admin[tableMax])
}
