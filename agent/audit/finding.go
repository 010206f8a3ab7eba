package audit

import (
	"cmp"
	"fmt"
	"slices"
)

// Severity says how much a finding matters.
type Severity uint8

// The severities, from the least.
const (
	OK       Severity = iota // looked at, and fine
	Info                     // worth knowing; nothing has to be done
	Warning                  // something should be done
	Critical                 // connections fail now, or will in a moment
)

var severities = [...]string{"ok", "info", "warning", "critical"}

// String returns the severity in a word.
func (s Severity) String() string { return severities[s] }

// MarshalText makes JSON say the word.
func (s Severity) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// Sureness says how far a finding can be relied on.
type Sureness string

// How sure a finding is.
const (
	Certain Sureness = "certain" // it was read
	Likely  Sureness = "likely"  // it follows from what was read, unless this host is unusual
	Guess   Sureness = "guess"   // it was looked for in a part only, or for a short time
)

// ID is the stable name of a kind of finding.
type ID string

// Setting is a value that an audit advises.
type Setting struct {
	Name  string `json:"name"` // without net.netfilter.
	Value int    `json:"value"`
	Why   string `json:"why"`
}

// Finding is one thing that an audit has to say. Field names of its JSON are stable.
type Finding struct {
	ID       ID        `json:"id"`
	Severity Severity  `json:"severity"`
	Title    string    `json:"title"`
	Evidence string    `json:"evidence"`
	Why      string    `json:"why"`
	Do       []string  `json:"do"` // commands for a shell; what is no command begins with #
	Sure     Sureness  `json:"sure"`
	Settings []Setting `json:"settings,omitempty"` // what would be right instead
}

// fine is the finding that there is nothing to find.
func fine(id ID, title string, args ...any) Finding {
	return Finding{ID: id, Title: fmt.Sprintf(title, args...), Sure: Certain}
}

// Judge returns what is to be said of a host, the worst first.
func Judge(f *Facts) []Finding {
	var all []Finding
	for _, judge := range []func(*Facts) []Finding{
		judgeReading, judgeNamespace, judgeFill, judgePeak, judgeCounters, judgeListing, judgeDay, judgeSize, judgeBuckets,
		judgeTimeouts, judgeSwitches, judgeFiles, judgeModule, judgeIdle, judgeUnanswered, judgeOwn, judgeInvalid,
		judgeOneWay, judgeNotrack, judgeHelpers, judgeNAT, judgePorts, judgeLegacy, judgeOwners, judgeSaved,
	} {
		all = append(all, judge(f)...)
	}
	for i := range all {
		if all[i].Do == nil {
			all[i].Do = []string{} // JSON says [] rather than null
		}
	}
	slices.SortStableFunc(all, func(a, b Finding) int { return cmp.Compare(b.Severity, a.Severity) })
	return all
}

// Worst returns the greatest severity among findings.
func Worst(all []Finding) (worst Severity) {
	for _, f := range all {
		worst = max(worst, f.Severity)
	}
	return worst
}
