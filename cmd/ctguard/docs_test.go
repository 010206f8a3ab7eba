package main

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// top is where the repository begins, seen from this package.
const top = "../.."

// documents returns the text of README.md and every page of docs, by path from the top.
func documents(t *testing.T) map[string]string {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(top, "docs/*.md"))
	if err != nil {
		t.Fatal(err)
	}
	pages := make(map[string]string)
	for _, path := range append(paths, filepath.Join(top, "README.md")) {
		name, err := filepath.Rel(top, path)
		if err != nil {
			t.Fatal(err)
		}
		pages[name] = read(t, name)
	}
	return pages
}

// read returns the text of a file of the repository.
func read(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(top, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// shellLine is one command that a page tells the reader to run, in words.
type shellLine struct {
	page  string
	words []string
}

// shellWord is a word of a shell line, or the comment that ends it.
var shellWord = regexp.MustCompile(`#.*|"[^"]*"|[^\s"]+`)

// shellLines returns the lines of every sh block, without sudo and comments.
func shellLines(t *testing.T) []shellLine {
	t.Helper()
	var lines []shellLine
	for page, text := range documents(t) {
		inside := false
		for line := range strings.Lines(text) {
			line = strings.TrimSpace(line)
			if strings.HasPrefix(line, "```") {
				inside = line == "```sh"
				continue
			}
			if !inside {
				continue
			}
			words := slices.DeleteFunc(shellWord.FindAllString(line, -1), func(w string) bool { return w[0] == '#' })
			for i := range words {
				words[i] = strings.Trim(words[i], `"`)
			}
			if len(words) > 0 && words[0] == "sudo" {
				words = words[1:]
			}
			if len(words) > 0 {
				lines = append(lines, shellLine{page, words})
			}
		}
	}
	return lines
}

// accepted says whether the program would take args: a command, its flags and as many arguments as
// it wants. Nothing is run.
func accepted(args []string) error {
	c, rest, err := newCommand().Find(args)
	if err != nil {
		return err
	}
	if err := c.ParseFlags(rest); err != nil {
		return err
	}
	if err := c.ValidateRequiredFlags(); err != nil {
		return err
	}
	check := c.Args
	if check == nil {
		check = cobra.ArbitraryArgs
	}
	return check(c, c.Flags().Args())
}

// Every ctguard command in the documents is one that this program takes.
func TestDocumentedCommands(t *testing.T) {
	n := 0
	for _, line := range shellLines(t) {
		if line.words[0] != "ctguard" {
			continue
		}
		n++
		if err := accepted(line.words[1:]); err != nil {
			t.Errorf("%s: %s: %v", line.page, strings.Join(line.words, " "), err)
		}
	}
	if n == 0 {
		t.Error("found no ctguard command in any document")
	}
	for _, wrong := range [][]string{{"nonsense"}, {"status", "--nonsense"}, {"check"}, {"revert", "now"}} {
		if accepted(wrong) == nil {
			t.Errorf("ctguard %s counts as right", strings.Join(wrong, " "))
		}
	}
}

// Every command has examples, which the program would take.
func TestExamples(t *testing.T) {
	for _, c := range newCommand().Commands() {
		if c.Hidden || c.Name() == "help" {
			continue
		}
		n := 0
		for line := range strings.Lines(c.Example) {
			line, _, _ = strings.Cut(line, "|")
			line, _, _ = strings.Cut(line, ">")
			words := shellWord.FindAllString(line, -1)
			if len(words) == 0 {
				continue
			}
			if n++; words[0] != "ctguard" || words[1] != c.Name() {
				t.Errorf("an example of ctguard %s: %s", c.Name(), line)
			} else if err := accepted(words[1:]); err != nil {
				t.Errorf("%s: %v", line, err)
			}
		}
		if n == 0 {
			t.Errorf("ctguard %s has no example", c.Name())
		}
	}
}

// Every command of the program is in the documents, or tells only of the program itself.
func TestCommandsAreDocumented(t *testing.T) {
	var text strings.Builder
	for _, page := range documents(t) {
		text.WriteString(page)
	}
	for _, c := range newCommand().Commands() {
		if name := c.Name(); name != "version" && !c.Hidden &&
			!regexp.MustCompile(`ctguard `+name+`\b`).MatchString(text.String()) {
			t.Errorf("no document says what ctguard %s is for", name)
		}
	}
}

// Every make target in the documents is one of the Makefile.
func TestDocumentedTargets(t *testing.T) {
	makefile := read(t, "Makefile")
	known := func(target string) bool {
		return regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(target) + `:`).MatchString(makefile)
	}
	var targets []string
	for page, text := range documents(t) {
		for _, m := range regexp.MustCompile("`(?:sudo )?make ([a-z0-9-]+)[^`]*`").FindAllStringSubmatch(text, -1) {
			targets = append(targets, m[1])
			if !known(m[1]) {
				t.Errorf("%s: make %s is no target", page, m[1])
			}
		}
	}
	for _, line := range shellLines(t) {
		if line.words[0] != "make" {
			continue
		}
		for _, target := range line.words[1:] {
			targets = append(targets, target)
			if !known(target) {
				t.Errorf("%s: make %s is no target", line.page, target)
			}
		}
	}
	if len(targets) == 0 || known("nonsense") {
		t.Errorf("found targets %v", targets)
	}
}

// Every link inside the repository leads somewhere.
func TestDocumentedLinks(t *testing.T) {
	link := regexp.MustCompile(`\]\(([^)#\s]+)(?:#[^)]*)?\)`)
	n := 0
	for page, text := range documents(t) {
		for _, m := range link.FindAllStringSubmatch(text, -1) {
			if strings.Contains(m[1], "://") {
				continue
			}
			n++
			if _, err := os.Stat(filepath.Join(top, filepath.Dir(page), m[1])); err != nil {
				t.Errorf("%s links to %s: %v", page, m[1], err)
			}
		}
	}
	if n == 0 {
		t.Error("found no link")
	}
}

// proofDirs are where docs/safety.md looks for files of which it gives only the name.
var proofDirs = map[string]string{".txtar": "cmd/ctguard/testdata/script", ".txt": "policy/testdata"}

// Every promise of docs/safety.md names what proves it, and that exists: a file, or a package by
// its path and after it the tests in it.
func TestSafetyIsProved(t *testing.T) {
	quoted := regexp.MustCompile("`([^`]+)`")
	promises := 0
	for line := range strings.Lines(read(t, "docs/safety.md")) {
		cells := strings.Split(strings.TrimSpace(line), "|")
		if len(cells) != 5 || strings.Contains(cells[3], "---") || strings.Contains(cells[3], "proved by") {
			continue
		}
		promises++
		proofs, dir := 0, ""
		for _, m := range quoted.FindAllStringSubmatch(cells[3], -1) {
			name := m[1]
			if strings.HasPrefix(name, "Test") {
				if proofs++; dir == "" || !hasTest(t, dir, name) {
					t.Errorf("%s: there is no test %s in package %q", strings.TrimSpace(cells[1]), name, dir)
				}
				continue
			}
			info, err := os.Stat(filepath.Join(top, proofDirs[filepath.Ext(name)], name))
			switch {
			case err != nil:
				t.Errorf("%s: %v", strings.TrimSpace(cells[1]), err)
			case info.IsDir():
				dir = name
			default:
				proofs++
			}
		}
		if proofs == 0 {
			t.Errorf("%s: nothing is named that proves it", strings.TrimSpace(cells[1]))
		}
	}
	if promises == 0 {
		t.Error("found no promise")
	}
}

// hasTest reports whether a package has a test of that name.
func hasTest(t *testing.T, dir, name string) bool {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(top, dir, "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(text), "\nfunc "+name+"(t *testing.T)") {
			return true
		}
	}
	return false
}
