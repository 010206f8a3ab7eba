package policy

import (
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write the transcripts anew")

// The scenarios in testdata are a story, a line "----", and what the machine made of it. See
// testdata/README.md for the words of the stories.
func TestScenarios(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scenarios: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			t.Parallel()
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			told, want, _ := strings.Cut(string(text), "----\n")
			st, err := parseStory(told)
			if err != nil {
				t.Fatal(err)
			}
			r, err := play(st)
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range st.expects {
				if err := r.check(e); err != nil {
					t.Errorf("expect %s: %v", e, err)
				}
			}
			got := r.transcript()
			if *update {
				if err := os.WriteFile(file, []byte(told+"----\n"+got), 0o644); err != nil {
					t.Fatal(err)
				}
			} else if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("the transcript changed (-want +got); -update writes it anew:\n%s", diff)
			}
		})
	}
}

// What is wrong in a story fails; a story that expects nothing is wrong.
func TestBadStories(t *testing.T) {
	const right = "\nexpect level 0 at end"
	for _, told := range []string{
		"", "untli 60s" + right, "until 60" + right, "profile laptop" + right, "off walk" + right, "max-limited many" + right,
		"at 2 stuck" + right, "at 9s stuck\nat 2s stuck" + right, "flow" + right, "flow a sources=x" + right,
		"flow a class=odd" + right, "flow a form=10.0.0.0/8" + right, "flow a pulse=4s" + right, "stop a" + right,
		"fit walk" + right, "service www" + right,
		"weight x 1" + right, "weight 10.0.0.0/8 x" + right, "pin walk 1s" + right, "pin grow" + right, "setting x" + right,
		"expect peace", "expect peak < high", "expect peak = 9", "expect level walk at end",
		"expect limited a", "expect step walk x",
	} {
		st, err := parseStory(told)
		if err == nil {
			var r *run
			if r, err = play(st); err == nil {
				err = r.check(st.expects[0])
			}
		}
		if err == nil {
			t.Errorf("nothing is wrong with %q", told)
		}
	}
}

// run is a story on its way through a machine.
type run struct {
	w       *world
	m       *Machine
	config  Config
	offset  time.Duration // how far the clock was moved
	out     strings.Builder
	changes int             // of the level
	engaged map[string]bool // steps that were engaged at some time
	told    []string        // what steps said: "NAME REASON"
	limited map[netip.Prefix]bool
}

// play runs a story.
func play(st *story) (*run, error) {
	r := &run{w: newWorld(), m: New(st.config), config: st.config,
		engaged: map[string]bool{}, limited: map[netip.Prefix]bool{}}
	r.w.floors = st.config.Floors
	lines := st.lines
	for r.now() < st.until {
		for len(lines) > 0 && lines[0].at <= r.now() {
			jump, err := r.tell(lines[0].word, lines[0].rest)
			if err != nil {
				return nil, fmt.Errorf("%s %s: %w", lines[0].word, lines[0].rest, err)
			}
			r.offset += jump
			lines = lines[1:]
		}
		d := r.m.Tick(r.w.observe())
		for _, l := range d.Posture.Limits {
			r.limited[l.Prefix] = true
		}
		for _, s := range r.config.Steps[:d.Posture.Level] {
			r.engaged[string(s.Name)] = true
		}
		r.note(d)
		r.w.advance(d)
	}
	return r, nil
}

// now returns how far the story is.
func (r *run) now() time.Duration { return r.w.now.Sub(r.w.start) - r.offset }

// top names a level by its top step.
func (r *run) top(level int) string {
	if level == 0 {
		return "0"
	}
	return string(r.config.Steps[level-1].Name)
}

// note writes one tick's events; limits of single sources as one line.
func (r *run) note(d Decision) {
	limited := 0
	for _, e := range d.Events {
		what := string(e.Kind)
		switch {
		case e.Kind == LevelEvent:
			what = fmt.Sprintf("level %s -> %s", r.top(*e.From), r.top(*e.To))
			r.changes++
		case e.Kind == LimitEvent && e.Prefix.IsValid():
			if limited++; limited > 1 {
				continue
			}
			what += " " + e.Prefix.String()
		case e.Step != "":
			what += " " + string(e.Step)
		}
		if e.Step != "" {
			r.told = append(r.told, string(e.Step)+" "+e.Reason)
		}
		fmt.Fprintf(&r.out, "%7.2fs %s: %s (fill %.0f %%, pressure %.0f %%, %+.0f/s)\n",
			r.now().Seconds(), what, e.Reason, e.Fill, e.Pressure, e.Rate)
	}
}

// transcript returns what happened, and how it ended.
func (r *run) transcript() string {
	fmt.Fprintf(&r.out,
		"peak fill %.0f %%, %.0f flows refused by the kernel, level changed %d times, level %s at the end\n",
		r.w.peak, r.w.refusedN, r.changes, r.top(r.m.ladder.level))
	for _, g := range r.w.groups {
		fmt.Fprintf(&r.out, "%s: %d of %d sources were limited\n", g.name, r.limitedOf(g), len(g.sources))
	}
	return r.out.String()
}

// limitedOf counts the sources of a group that were limited at some time.
func (r *run) limitedOf(g *group) int {
	n := 0
	for _, s := range g.sources {
		if (r.limited[s.prefix] || r.limited[r.config.folded(Source{Prefix: s.prefix}).Prefix]) && !g.random {
			n++
		}
	}
	return n
}

// check says what is wrong with an expectation; see testdata/README.md for their forms.
func (r *run) check(expect string) error {
	f := strings.Fields(expect)
	switch {
	case len(f) == 3 && f[0] == "peak":
		return compare(r.w.peak, f[1], f[2])
	case len(f) == 3 && f[0] == "reserved":
		return compare(float64(r.w.work.ReserveDropped), f[1], f[2])
	case len(f) == 3 && f[0] == "refused":
		return compare(r.w.refusedN, f[1], f[2])
	case len(f) == 3 && f[0] == "changes":
		return compare(float64(r.changes), f[1], f[2])
	case len(f) == 4 && f[0] == "level" && f[2] == "at" && f[3] == "end":
		if got := r.top(r.m.ladder.level); got != f[1] {
			return fmt.Errorf("it is %s", got)
		}
		return nil
	case len(f) == 2 && (f[0] == "limited" || f[0] == "unlimited"):
		return r.checkLimited(f[1], f[0] == "limited")
	case len(f) == 4 && f[0] == "taken":
		g, err := r.w.group(f[1])
		if err != nil {
			return err
		}
		return compare(g.taken, f[2], f[3])
	case len(f) == 2 && f[0] == "whole":
		return r.checkWhole(f[1])
	case len(f) == 2 && (f[0] == "engaged" || f[0] == "never"):
		if _, listed := r.config.Step(StepName(f[1])); !listed || r.engaged[f[1]] != (f[0] == "engaged") {
			return fmt.Errorf("engaged were %v", r.engaged)
		}
		return nil
	case len(f) > 2 && f[0] == "step":
		name, text := f[1]+" ", strings.Join(f[2:], " ")
		said := func(s string) bool { return strings.HasPrefix(s, name) && strings.Contains(s, text) }
		if !slices.ContainsFunc(r.told, said) {
			return fmt.Errorf("the step never said so")
		}
		return nil
	}
	return fmt.Errorf("unknown form")
}

// checkLimited says whether all sources of a group were limited, or none.
func (r *run) checkLimited(name string, want bool) error {
	g, err := r.w.group(name)
	if err != nil {
		return err
	}
	if n := r.limitedOf(g); want && n != len(g.sources) || !want && n > 0 {
		return fmt.Errorf("%d of %d were", n, len(g.sources))
	}
	return nil
}

// checkWhole says whether every conversation of a group goes on.
func (r *run) checkWhole(name string) error {
	g, err := r.w.group(name)
	if err != nil {
		return err
	}
	cut := 0.0
	for _, s := range g.sources {
		cut += s.flushed + s.cut
	}
	if cut >= 1 {
		return fmt.Errorf("%.0f are cut", cut)
	}
	return nil
}

// compare checks a number against a bound.
func compare(got float64, how, bound string) error {
	x, err := strconv.ParseFloat(bound, 64)
	switch {
	case err != nil:
		return err
	case how == "<" && got < x, how == ">" && got > x:
		return nil
	}
	return fmt.Errorf("it is %g", got)
}
