package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
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
		fields(t, "Fields of `ctguard status --json`", "agent/control/status.go",
			"Status", "LimitedStatus", "HoldersStatus", "HolderStatus") +
		fields(t, "Fields of an event (`ctguard events --json`)", "policy/event.go", "Event") +
		fields(t, "Fields of `ctguard plan --json`", "agent/plan.go", "Plan") +
		fields(t, "Fields of `ctguard sources --json`", "cmd/ctguard/sources.go",
			"sourcesReport", "portReport", "sourceReport") +
		findingKinds() + exitCodes(t)
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

// fields reads the JSON fields of some types, and what is said of each, from their source.
func fields(t *testing.T, title, file string, types ...string) string {
	text := read(t, file)
	field := regexp.MustCompile("(?m)^\t(?:// (.*)\n\t)?\\w+ +(\\S+) +`json:\"(\\w+)[^`]*`(?: *// (.*))?$")
	var rows [][]string
	for _, name := range types {
		body := regexp.MustCompile(`(?s)\ntype ` + name + ` struct \{\n(.*?)\n\}`).FindStringSubmatch(text)
		if body == nil {
			t.Fatalf("%s has no type %s", file, name)
		}
		for _, m := range field.FindAllStringSubmatch(body[1], -1) {
			rows = append(rows, []string{"`" + m[3] + "`", "`" + m[2] + "`", m[1] + m[4]})
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
