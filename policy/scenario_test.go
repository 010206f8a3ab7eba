package policy

import (
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
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
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			story, want, _ := strings.Cut(string(text), "----\n")
			got := play(t, story)
			if *update {
				if err := os.WriteFile(file, []byte(story+"----\n"+got), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("the transcript changed (-want +got); -update writes it anew:\n%s", diff)
			}
		})
	}
}

// play runs a story and returns what happened.
func play(t *testing.T, story string) string {
	t.Helper()
	w := newWorld()
	config := Defaults(Server)
	type step struct {
		at   time.Duration
		word string
		rest string
	}
	var steps []step
	until := time.Minute
	for line := range strings.Lines(story) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		var at time.Duration
		if rest, ok := strings.CutPrefix(line, "at "); ok {
			when, rest, _ := strings.Cut(rest, " ")
			d, err := time.ParseDuration(when)
			if err != nil {
				t.Fatalf("%s: %v", line, err)
			}
			at, line = d, rest
		}
		word, rest, _ := strings.Cut(line, " ")
		switch word {
		case "until":
			until, _ = time.ParseDuration(rest)
		case "profile":
			config = Defaults(Profile(rest))
		case "max-limited":
			config.MaxLimited, _ = strconv.Atoi(rest)
		case "off":
			for i, s := range config.Steps {
				if string(s.Name) == rest {
					config.Steps = append(config.Steps[:i:i], config.Steps[i+1:]...)
					break
				}
			}
		default:
			steps = append(steps, step{at, word, rest})
		}
	}
	m := New(config)
	var out strings.Builder
	changes, held := 0, make(map[netip.Prefix]bool)
	offset := time.Duration(0) // how far the clock was moved
	for w.now.Sub(w.start)-offset < until {
		for len(steps) > 0 && steps[0].at <= w.now.Sub(w.start)-offset {
			if jump, err := tell(w, m, &config, steps[0].word, steps[0].rest); err != nil {
				t.Fatalf("%v: %v", steps[0], err)
			} else {
				offset += jump
			}
			steps = steps[1:]
		}
		d := m.Tick(w.observe())
		for _, l := range d.Posture.Limits {
			held[l.Prefix] = true
		}
		tellEvents(&out, d, w.now.Sub(w.start)-offset, &changes)
		w.advance(d)
	}
	fmt.Fprintf(&out, "peak fill %.0f %%, %.0f flows refused by the kernel, level changed %d times, level %d at the end",
		w.peak, w.refusedN, changes, m.ladder.level)
	for _, g := range w.groups {
		n := 0
		for _, s := range g.sources {
			if (held[s.prefix] || held[config.folded(s.prefix)]) && !g.random {
				n++
			}
		}
		fmt.Fprintf(&out, "\n%s: %d of %d sources were held back", g.name, n, len(g.sources))
	}
	return out.String() + "\n"
}

// tellEvents writes one tick's events; limits of single sources as one line.
func tellEvents(out *strings.Builder, d Decision, at time.Duration, changes *int) {
	limited := 0
	for _, e := range d.Events {
		what := string(e.Kind)
		switch {
		case e.Kind == LevelEvent:
			what = fmt.Sprintf("level %d -> %d", *e.From, *e.To)
			*changes++
		case e.Kind == LimitEvent && e.Prefix.IsValid():
			if limited++; limited > 1 {
				continue
			}
			what += " " + e.Prefix.String()
		case e.Step != "":
			what += " " + string(e.Step)
		}
		fmt.Fprintf(out, "%7.2fs %s: %s (fill %.0f %%, pressure %.0f %%, %+.0f/s)\n",
			at.Seconds(), what, e.Reason, e.Fill, e.Pressure, e.Rate)
	}
}

// tell carries one line of a story out; it returns how far it moved the clock.
func tell(w *world, m *Machine, c *Config, word, rest string) (time.Duration, error) {
	var err error
	switch word {
	case "flow":
		err = w.add(rest)
	case "stop":
		for _, g := range w.groups {
			g.stopped = g.stopped || g.name == rest
		}
	case "fit":
		delete(w.unfit, StepName(rest))
	case "room":
		w.room, err = strconv.Atoi(rest)
	case "stuck":
		w.stuck = true
	case "service", "lane", "broken", "listener":
		var s Selector
		switch s, err = ParseSelector(rest); word {
		case "service":
			w.services = append(w.services, s)
		case "lane":
			w.lane = append(w.lane, s)
		case "listener":
			w.listen = append(w.listen, s)
		default:
			w.broken[s] = true
		}
	case "allow":
		var p netip.Prefix
		p, err = netip.ParsePrefix(rest)
		w.allow = append(w.allow, p)
	case "weight":
		prefix, weight, _ := strings.Cut(rest, " ")
		var x float64
		x, err = strconv.ParseFloat(weight, 64)
		c.Weights = append(c.Weights, Weight{netip.MustParsePrefix(prefix), x})
		m.Reconfigure(*c)
	case "capacity":
		w.capacity, err = strconv.Atoi(rest)
	case "setting":
		name, value, _ := strings.Cut(rest, " ")
		w.admin[name], err = strconv.Atoi(value)
	case "invalid":
		var n int
		n, err = strconv.Atoi(rest)
		w.kernel.Invalid += uint64(n)
	case "counters-back":
		w.kernel, w.work, w.arrivals = KernelCounters{}, Work{Selectors: map[Selector]SelectorWork{}}, Arrivals{}
	case "clock":
		var d time.Duration
		d, err = time.ParseDuration(rest)
		w.now = w.now.Add(d)
		return d, err
	case "pin":
		level, span, _ := strings.Cut(rest, " ")
		ov := &Override{Kind: Pin, Reason: "maintenance"}
		if ov.Level, err = strconv.Atoi(level); err == nil {
			var d time.Duration
			d, err = time.ParseDuration(span)
			ov.Until = w.now.Add(d)
		}
		m.SetOverride(ov)
	default:
		err = fmt.Errorf("unknown word %q", word)
	}
	return 0, err
}
