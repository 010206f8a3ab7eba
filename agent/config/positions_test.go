package config

import (
	"strings"
	"testing"
)

// However a key is written, its fault is told with the key's line: dotted, quoted, in an inline table, behind a
// text that looks like a key, or on several lines.
func TestPositions(t *testing.T) {
	for _, c := range []struct{ name, text, want string }{
		{"dotted", "\nsteps.evict.leave = 95", `bad.toml:2: steps.evict.leave: 95 is not above 0`},
		{"quoted", "[steps.'drop-invalid']\n\"leave\" = 95", `bad.toml:2: steps.drop-invalid.leave: 95 is not above 0`},
		{"inline table", "\n\nevict = { floor = 0 }", `bad.toml:3: evict.floor: 0 is below 1`},
		{"behind a text of several lines", "group = \"\"\"\nlookahead = 1\n[evict]\n\"\"\"\nlookahead = \"6m\"",
			`bad.toml:5: lookahead: 6m0s is not between`},
		{"behind a list of several lines", "allow = [\n\t\"192.0.2.1\", # floor = 1\n]\n[evict]\nfloor = 0",
			`bad.toml:5: evict.floor: 0 is below 1`},
		{"table named by its parts only", "[steps.evict]\nleave = 60\n[steps.fly]\nleave = 1",
			`bad.toml:3: steps.fly: unknown step`},
		{"in other letters' case", "[EVICT]\nFLOOR = \"x\"",
			`bad.toml:2: EVICT.FLOOR: is a string: write a whole number`},
		{"element of a list", "[management]\nports = [22, \"ssh\"]",
			`bad.toml:2: management.ports: is a string: write a whole number`},
		{"list for a duration", "lookahead = [5]", `bad.toml:1: lookahead: is a list: write a duration in quotes`},
		{"number for a duration", "lookahead = 5", `bad.toml:1: lookahead: "5" is no duration: write`},
		{"date for a text", "group = 2026-01-01", `bad.toml:1: group: is a date: write a string`},
		{"tables for a table", "[[evict]]\nfloor = 5", `bad.toml:1: evict: is a list of tables: write a table`},
		{"two of a wrong type", "[evict]\nfloor = \"x\"\n[table]\ncapacity = true",
			"bad.toml:2: evict.floor: is a string: write a whole number\nbad.toml:4: table.capacity: is true or false: write"},
	} {
		if _, err := Parse("bad.toml", []byte(c.text)); err == nil || !strings.HasPrefix(err.Error(), c.want) {
			t.Errorf("%s:\n got %v\nwant %s", c.name, err, c.want)
		}
	}
}
