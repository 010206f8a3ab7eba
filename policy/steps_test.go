package policy

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// stepConstants returns the identifier of each step's name, read from the sources.
func stepConstants(t *testing.T) map[StepName]string {
	t.Helper()
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	constants := make(map[StepName]string)
	for _, name := range files {
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(file, func(n ast.Node) bool {
			spec, ok := n.(*ast.ValueSpec)
			if !ok {
				return true
			}
			if of, ok := spec.Type.(*ast.Ident); ok && of.Name == "StepName" && len(spec.Values) == 1 {
				value, _ := strconv.Unquote(spec.Values[0].(*ast.BasicLit).Value)
				constants[StepName(value)] = spec.Names[0].Name
			}
			return true
		})
	}
	for _, name := range StepNames() {
		if constants[name] == "" {
			t.Errorf("no constant is %q", name)
		}
	}
	return constants
}

// The files that know no step name none: neither its name, nor its constant, nor its type.
func TestFilesThatNameNoStep(t *testing.T) {
	var words []string
	for name, constant := range stepConstants(t) {
		words = append(words, string(name), constant)
	}
	for _, l := range catalogue {
		words = append(words, reflect.TypeOf(l.build()).Elem().Name())
	}
	named := regexp.MustCompile(`\b(` + strings.Join(words, "|") + `)\b`)
	for _, file := range []string{"machine.go", "ladder.go", "pressure.go", "ordinaryday.go", "halfopen.go", "work.go",
		"override.go", "status.go", "explain.go", "estimate.go", "fairshare.go", "shares.go"} {
		files, err := filepath.Glob(file)
		if err != nil || len(files) == 0 {
			t.Fatalf("no file %s: %v", file, err)
		}
		text, err := os.ReadFile(files[0])
		if err != nil {
			t.Fatal(err)
		}
		for i, line := range strings.Split(string(text), "\n") {
			if word := named.FindString(line); word != "" {
				t.Errorf("%s:%d names the step %s", file, i+1, word)
			}
		}
	}
}

// placesOfAStep returns the list of docs/architecture.md, "Adding a step".
func placesOfAStep(t *testing.T) []string {
	t.Helper()
	text, err := os.ReadFile("../docs/architecture.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, found := strings.Cut(string(text), "\n## Adding a step\n")
	section, _, _ = strings.Cut(section, "\n## ")
	section, _, _ = strings.Cut(section, "\n### ")
	var places []string
	for _, m := range regexp.MustCompile("(?m)^[0-9]+\\. `([^`]+)`").FindAllStringSubmatch(section, -1) {
		places = append(places, m[1])
	}
	if !found || len(places) == 0 || len(places) > 8 {
		t.Fatalf("docs/architecture.md lists %d places that a new step touches, want 1 to 8", len(places))
	}
	return places
}

// A file that names every step must name a new one too. Those are the places that docs/architecture.md lists,
// besides each step's own files.
func TestAddingAStep(t *testing.T) {
	var listed []string
	for _, place := range placesOfAStep(t) {
		switch {
		case strings.HasSuffix(place, "NAME.go"):
			for _, name := range StepNames() {
				own := strings.ReplaceAll(place, "NAME", strings.ReplaceAll(string(name), "-", ""))
				if _, err := os.Stat(filepath.Join("..", own)); err != nil {
					t.Errorf("the file of %s: %v", name, err)
				}
			}
		case strings.HasSuffix(place, "NAME.txt"):
			for _, name := range StepNames() {
				if !hasStory(t, name) {
					t.Errorf("no story in testdata says what %s brought", name)
				}
			}
		default:
			listed = append(listed, place)
		}
	}
	slices.Sort(listed)
	if all := filesThatNameAll(t); !slices.Equal(all, listed) {
		t.Errorf("these files name every step:\n%q\ndocs/architecture.md says:\n%q", all, listed)
	}
}

// hasStory reports whether a transcript says what the step called name brought.
func hasStory(t *testing.T, name StepName) bool {
	t.Helper()
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil {
		t.Fatal(err)
	}
	return slices.ContainsFunc(files, func(file string) bool {
		text, err := os.ReadFile(file)
		return err == nil && strings.Contains(string(text), fmt.Sprintf(" step %s: ", name))
	})
}

// filesThatNameAll returns the files of the repository that name every step, sorted.
func filesThatNameAll(t *testing.T) []string {
	t.Helper()
	var names, inPolicy []*regexp.Regexp
	for name, constant := range stepConstants(t) {
		word := `\b` + string(name) + `\b|policy\.` + constant + `\b`
		names = append(names, regexp.MustCompile(word))
		inPolicy = append(inPolicy, regexp.MustCompile(word+`|\b`+constant+`\b`))
	}
	kinds := []string{".go", ".md", ".toml", ".txt", ".txtar", ".json", ""}
	var files []string
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		name := d.Name()
		switch {
		case err != nil:
			return err
		case name == "changelog.md": // what it says is past
			return nil
		case d.IsDir() && (name == "bin" || name == "rapid" || strings.HasPrefix(name, ".") && name != ".."):
			return filepath.SkipDir
		case d.IsDir() || !slices.Contains(kinds, filepath.Ext(name)):
			return nil
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		path, _ = filepath.Rel("..", path)
		words := names
		if filepath.Dir(path) == "policy" {
			words = inPolicy
		}
		if !slices.ContainsFunc(words, func(w *regexp.Regexp) bool { return !w.Match(text) }) {
			files = append(files, filepath.ToSlash(path))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(files)
	return files
}

// The tables of the docs have the steps in the order of the ladder, with their marks.
func TestTablesInTheDocs(t *testing.T) {
	var want []string
	for _, s := range defaultSteps() {
		want = append(want, fmt.Sprintf("%s %g / %g", s.Name, s.Enter, s.Leave))
	}
	row := regexp.MustCompile("(?m)^\\|(?: [0-9]+ \\|)? `([a-z-]+)` \\| ([0-9]+ / [0-9]+)")
	for _, file := range []string{"../README.md", "../docs/steps.md"} {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, m := range row.FindAllStringSubmatch(string(text), -1) {
			got = append(got, m[1]+" "+m[2])
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s has the steps %q, want %q", file, got, want)
		}
	}
}

// Each step's section in the docs begins with the same lines.
func TestStepsInTheDocsAreAlike(t *testing.T) {
	text, err := os.ReadFile("../docs/steps.md")
	if err != nil {
		t.Fatal(err)
	}
	var all strings.Builder
	for _, l := range catalogue {
		fmt.Fprintf(&all, `(?s)\n## %s\n\n\| \| \|\n\| --- \| --- \|\n`, l.name)
		for _, row := range []string{"does", "could harm", "watches", "look at it"} {
			fmt.Fprintf(&all, `\| %s \| [^\n|]([^\n|]|\\\|)+\|\n`, row)
		}
		fmt.Fprintf(&all, "\\| leave it out \\| `steps\\.%s\\.enabled = false` \\|\\n.*", l.name)
	}
	if !regexp.MustCompile(all.String()).Match(text) {
		t.Error("a section lacks its lines, or has them in another order")
	}
}

// counting is a step that wants nothing and counts the ticks at which it could work.
type counting struct {
	plain
	ticks uint64
}

func (c *counting) want(s situation, _ *Posture) []Event {
	if s.works {
		c.ticks++
	}
	return nil
}

func (c *counting) done(Observation) uint64 { return c.ticks }

func (*counting) brought(_ situation, done uint64, _ outcome) string {
	return fmt.Sprintf("counted %d ticks", done)
}

// A type and a line in the list make a step: it has marks, is engaged, says what it brought, and has a status.
func TestAStepThatOnlyCounts(t *testing.T) {
	before := catalogue
	defer func() { catalogue = before }()
	count := listing{"count", 97, 85, 10 * time.Second, false, "a step of a test", func() step { return &counting{} }}
	catalogue = append(slices.Clone(before), count)
	m := New(Defaults(Server))
	o := Observation{Time: time.Unix(1000, 0), Count: 98, Capacity: 100}
	var told []string
	for range 6 {
		for _, e := range m.Tick(o).Events {
			told = append(told, string(e.Step)+": "+e.Reason)
		}
		o.Time = o.Time.Add(time.Second)
	}
	want := "count: counted 6 ticks in 5s: fill 98 % to 98 %, 0 flows refused by the kernel meanwhile"
	if !slices.Contains(told, want) {
		t.Errorf("told %q, want %q among it", told, want)
	}
	status := m.Steps()
	if last := status[len(status)-1]; last.Name != "count" || !last.Engaged || last.Work != 6 || last.Enter != 97 {
		t.Errorf("status %+v", last)
	}
}
