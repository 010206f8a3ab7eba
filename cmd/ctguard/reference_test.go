package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"ctguard/agent/audit"
	"ctguard/agent/control"
)

var update = flag.Bool("update", false, "write docs/reference.md anew")

// docs/reference.md is what the code says, so that it can't lie: go test ./cmd/ctguard -run TestReference -update.
func TestReference(t *testing.T) {
	want := "# Reference\n\n" +
		"Made from the code by `go test ./cmd/ctguard -run TestReference -update`; a test keeps it true.\n\n" +
		configurationKeys(t) + metricNames() + eventKinds(t) +
		jsonFields(t) + findingKinds() + exitCodes(t)
	path := filepath.Join(top, "docs/reference.md")
	if *update {
		if err := os.WriteFile(path, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if read(t, "docs/reference.md") != want {
		t.Error("docs/reference.md is not what the code says: go test ./cmd/ctguard -run TestReference -update")
	}
}

// table makes a section with a table of rows.
func table(title, head string, rows [][]string) string {
	var b strings.Builder
	columns := strings.Split(head, ",")
	fmt.Fprintf(&b, "## %s\n\n| %s |\n|%s\n", title, strings.Join(columns, " | "), strings.Repeat(" --- |", len(columns)))
	for _, row := range rows {
		for i, cell := range row {
			row[i] = strings.ReplaceAll(strings.Join(strings.Fields(cell), " "), "|", `\|`)
		}
		fmt.Fprintf(&b, "| %s |\n", strings.Join(row, " | "))
	}
	return b.String() + "\n"
}

// configurationKeys reads every key of the configuration, its default and what is said of it from the example, which
// another test compares with the code.
func configurationKeys(t *testing.T) string {
	section, said := "", ""
	setting := regexp.MustCompile(`^(?:"?([a-z0-9_.-]+)"?) = (.*)$`)
	var rows [][]string
	for line := range strings.Lines(read(t, "docs/examples/ctguard.toml")) {
		line = strings.TrimSpace(line)
		switch m := setting.FindStringSubmatch(line); {
		case strings.HasPrefix(line, "#"):
			said += " " + strings.TrimPrefix(line, "#")
			continue
		case strings.HasPrefix(line, "["):
			section = strings.Trim(line, "[]") + "."
			if said != "" {
				rows = append(rows, []string{"`" + strings.TrimSuffix(section, ".") + "`", "", said})
			}
		case m != nil:
			rows = append(rows, []string{"`" + section + m[1] + "`", "`" + m[2] + "`", said})
		}
		said = ""
	}
	if len(rows) < 40 {
		t.Errorf("found %d keys only", len(rows))
	}
	return "The configuration is TOML at `/etc/ctguard/ctguard.toml`, which may be absent.\n\n" +
		table("Keys of the configuration", "key,default,meaning", rows)
}

// metricNames lists what Prometheus sees, without what its library says of Go and the process.
func metricNames() string {
	var rows [][]string
	for _, m := range control.Metrics() {
		labels := ""
		if len(m.Labels) > 0 {
			labels = "`" + strings.Join(m.Labels, "`, `") + "`"
		}
		rows = append(rows, []string{"`" + m.Name + "`", labels, m.Help})
	}
	return table("Metrics", "name,labels,meaning", rows)
}

// eventKinds reads the kinds of event from the constants.
func eventKinds(t *testing.T) string {
	var rows [][]string
	for _, m := range regexp.MustCompile(`(?m)^\t\w+Event +(?:EventKind )?= "(\w+)" +// (.*)$`).
		FindAllStringSubmatch(read(t, "policy/event.go"), -1) {
		rows = append(rows, []string{"`" + m[1] + "`", m[2]})
	}
	if len(rows) < 8 {
		t.Errorf("found %d kinds of event only", len(rows))
	}
	return table("Events", "event,when", rows)
}

// jsonType is a type whose fields are in a command's JSON, below a path.
type jsonType struct{ below, file, name string }

// commandJSON is what a command's --json prints.
type commandJSON struct {
	command string
	types   []jsonType
}

// documentedJSON is what each command's --json prints.
var documentedJSON = []commandJSON{
	{"status", []jsonType{
		{"", "agent/control/status.go", "Status"},
		{"steps[].", "policy/status.go", "StepStatus"},
		{"selectors[].", "policy/notrack.go", "SelectorStatus"},
		{"limited[].", "agent/control/status.go", "LimitedStatus"},
		{"ordinary.", "policy/ordinaryday.go", "DayStatus"},
		{"holders.", "agent/control/status.go", "HoldersStatus"},
		{"holders.sources[].", "agent/control/status.go", "HolderStatus"},
		{"override.", "policy/override.go", "Override"},
		{"words[].", "policy/override.go", "Word"},
	}},
	{"events", []jsonType{{"", "agent/control/events.go", "NumberedEvent"}, {"", "policy/event.go", "Event"}}},
	{"sources", []jsonType{
		{"", "cmd/ctguard/sources.go", "sourcesReport"},
		{"ports[].", "cmd/ctguard/sources.go", "portReport"},
		{"sources[].", "cmd/ctguard/sources.go", "sourceReport"},
	}},
	{"sources --by", []jsonType{
		{"", "cmd/ctguard/groups.go", "groupsReport"}, {"groups[].", "cmd/ctguard/groups.go", "groupReport"},
	}},
	{"flows", []jsonType{{"", "cmd/ctguard/flows.go", "flowReport"}}},
	{"audit", []jsonType{
		{"", "cmd/ctguard/audit.go", "auditReport"},
		{"findings[].", "agent/audit/finding.go", "Finding"},
		{"findings[].settings[].", "agent/audit/finding.go", "Setting"},
	}},
	{"size", []jsonType{{"", "cmd/ctguard/size.go", "sizeReport"}}},
	{"plan", []jsonType{{"", "agent/plan.go", "Plan"}, {"settings[].", "agent/sysctl/keeper.go", "Change"}}},
	{"explain", []jsonType{{"", "cmd/ctguard/explain.go", "explanation"}}},
	{"hold", []jsonType{{"", "policy/override.go", "Override"}}},
	{"auto", []jsonType{{"", "cmd/ctguard/override.go", "autoReport"}}},
	{"limit", []jsonType{{"", "policy/override.go", "Word"}}},
	{"release", []jsonType{{"", "policy/override.go", "Word"}}},
	{"evict", []jsonType{{"", "cmd/ctguard/evict.go", "evictionReport"}}},
	{"revert", []jsonType{{"", "cmd/ctguard/revert.go", "revertReport"}}},
	{"check", []jsonType{{"", "cmd/ctguard/check.go", "checkReport"}}},
	{"replay", []jsonType{{"", "cmd/ctguard/replay.go", "replayReport"}}},
	{"version", []jsonType{{"", "cmd/ctguard/version.go", "versionReport"}}},
}

// jsonFields lists the fields of every command's JSON.
func jsonFields(t *testing.T) (text string) {
	for _, one := range documentedJSON {
		text += fields(t, "Fields of `ctguard "+one.command+" --json`", one.types)
	}
	return text
}

// Every command prints JSON whose fields are documented, but for those that have nothing to tell a program.
func TestJSONEverywhere(t *testing.T) {
	without := []string{"run", "top", "completion", "help"} // run logs JSON, top is for eyes
	for _, c := range newCommand().Commands() {
		if slices.Contains(without, c.Name()) || !c.IsAvailableCommand() {
			continue
		}
		if c.Flags().Lookup("json") == nil {
			t.Errorf("ctguard %s has no --json", c.Name())
		}
		if !slices.ContainsFunc(documentedJSON, func(one commandJSON) bool { return one.command == c.Name() }) {
			t.Errorf("nobody says what ctguard %s --json prints", c.Name())
		}
	}
}

// fields reads the JSON fields of some types, and what is said of each, from their source.
func fields(t *testing.T, title string, types []jsonType) string {
	field := regexp.MustCompile("(?m)((?:^\t// .*\n)*)^\t\\w+ +(\\S+) +`json:\"(\\w+)[^`]*`(?: *// (.*))?$")
	var rows [][]string
	for _, one := range types {
		body := regexp.MustCompile(`(?s)\ntype ` + one.name + ` struct \{\n(.*?)\n\}`).FindStringSubmatch(read(t, one.file))
		if body == nil {
			t.Fatalf("%s has no type %s", one.file, one.name)
		}
		for _, m := range field.FindAllStringSubmatch(body[1], -1) {
			said := strings.ReplaceAll(m[1], "// ", "") + m[4]
			rows = append(rows, []string{"`" + one.below + m[3] + "`", "`" + m[2] + "`", said})
		}
	}
	return table(title, "field,type in Go,meaning", rows)
}

// findingKinds lists what ctguard audit may find.
func findingKinds() string {
	var rows [][]string
	for _, k := range audit.Catalogue() {
		rows = append(rows, []string{"`" + string(k.ID) + "`", k.Worst.String(), k.Says})
	}
	return table("Findings of `ctguard audit`", "finding,at worst,what it is about", rows)
}

// exitCodes reads the exit codes from the constants.
func exitCodes(t *testing.T) string {
	rows := [][]string{{"0", "fine"}}
	for _, m := range regexp.MustCompile(`(?m)^\texit(\w+) += (\d+)(?: +// (.*))?$`).
		FindAllStringSubmatch(read(t, "cmd/ctguard/main.go"), -1) {
		said := m[3]
		if strings.HasPrefix(said, "of ") || said == "" {
			said = strings.TrimSpace(strings.ToLower(regexp.MustCompile(`([a-z])([A-Z])`).
				ReplaceAllString(m[1], "$1 $2")) + " " + said)
		}
		rows = append(rows, []string{m[2], said})
	}
	return strings.TrimSuffix(table("Exit codes", "code,meaning", rows), "\n")
}
