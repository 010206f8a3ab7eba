package policy

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"go4.org/netipx"
)

// story is what a scenario tells: the configuration, what happens when, and what must come of it whatever the
// transcript says.
type story struct {
	config  Config
	until   time.Duration
	lines   []line
	expects []string
}

// line is one thing that happens.
type line struct {
	at         time.Duration
	word, rest string
}

// parseStory reads a story; what happens is checked only when it happens.
func parseStory(text string) (*story, error) {
	st := &story{config: Defaults(Server), until: time.Minute}
	for row := range strings.Lines(text) {
		row = strings.TrimSpace(row)
		if row == "" || strings.HasPrefix(row, "#") {
			continue
		}
		if err := st.read(row); err != nil {
			return nil, fmt.Errorf("%q: %w", row, err)
		}
	}
	if len(st.expects) == 0 {
		return nil, fmt.Errorf("the story expects nothing: -update would wash everything away")
	}
	return st, nil
}

// read takes one line of a story.
func (st *story) read(row string) (err error) {
	l := line{}
	if rest, ok := strings.CutPrefix(row, "at "); ok {
		var when string
		when, row, _ = strings.Cut(rest, " ")
		if l.at, err = time.ParseDuration(when); err != nil {
			return err
		}
	}
	l.word, l.rest, _ = strings.Cut(row, " ")
	switch l.word {
	case "until":
		st.until, err = time.ParseDuration(l.rest)
	case "profile":
		st.config = Defaults(Profile(l.rest))
		if faults := st.config.Validate(); len(faults) > 0 {
			return faults[0]
		}
	case "max-limited":
		st.config.MaxLimited, err = strconv.Atoi(l.rest)
	case "off":
		if _, listed := st.config.Step(StepName(l.rest)); !listed {
			return fmt.Errorf("no step %q", l.rest)
		}
		st.config.Steps = slices.DeleteFunc(st.config.Steps, func(s Step) bool { return string(s.Name) == l.rest })
	case "expect":
		st.expects = append(st.expects, l.rest)
	default:
		if n := len(st.lines); n > 0 && st.lines[n-1].at > l.at {
			return fmt.Errorf("it comes after a line of %s", st.lines[n-1].at)
		}
		st.lines = append(st.lines, l)
	}
	return err
}

// tell carries one line out; it returns how far it moved the clock.
func (r *run) tell(word, rest string) (jump time.Duration, err error) {
	w := r.w
	switch word {
	case "flow":
		err = w.add(rest)
	case "stop":
		err = w.stop(rest)
	case "fit":
		if w.unsupported[StepName(rest)] == "" {
			return 0, fmt.Errorf("%q is not unsupported", rest)
		}
		delete(w.unsupported, StepName(rest))
	case "room":
		w.room, err = strconv.Atoi(rest)
	case "flush":
		w.flush()
	case "unlisted":
		w.unlisted, err = strconv.ParseFloat(rest, 64)
	case "stuck":
		w.stuck = true
	case "service", "lane", "broken", "refused", "listener":
		err = w.choose(word, rest)
	case "allow":
		var p netip.Prefix
		p, err = netip.ParsePrefix(rest)
		w.allow = append(w.allow, p)
	case "inside":
		var p netip.Prefix
		p, err = netip.ParsePrefix(rest)
		w.inside = append(w.inside, p)
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
		jump, err = time.ParseDuration(rest)
		w.now = w.now.Add(jump)
	case "weight":
		err = r.weight(rest)
	case "pin":
		err = r.pin(rest)
	default:
		err = fmt.Errorf("unknown word")
	}
	return jump, err
}

// stop lets a group open no more flows.
func (w *world) stop(name string) error {
	g, err := w.group(name)
	if err == nil {
		g.stopped = true
	}
	return err
}

// group returns the group of a name.
func (w *world) group(name string) (*group, error) {
	i := slices.IndexFunc(w.groups, func(g *group) bool { return g.name == name })
	if i < 0 {
		return nil, fmt.Errorf("no flow is called %q", name)
	}
	return w.groups[i], nil
}

// choose takes a selector for one purpose.
func (w *world) choose(word, text string) error {
	s, err := ParseSelector(text)
	switch word {
	case "service":
		w.services = append(w.services, s)
	case "lane":
		w.lane = append(w.lane, s)
	case "listener":
		w.listen = append(w.listen, s)
	case "refused":
		w.refused[s] = "a rule asks what conntrack calls it"
	default:
		w.broken[s] = true
	}
	return err
}

// weight lets a prefix have more than one fair share.
func (r *run) weight(rest string) error {
	prefix, weight, _ := strings.Cut(rest, " ")
	p, err := netip.ParsePrefix(prefix)
	if err != nil {
		return err
	}
	x, err := strconv.ParseFloat(weight, 64)
	r.config.Weights = append(r.config.Weights, Weight{p, x})
	r.m.Reconfigure(r.config)
	return err
}

// pin has the operator pin the level at which a step is on top.
func (r *run) pin(rest string) error {
	name, span, _ := strings.Cut(rest, " ")
	level := 1 + slices.IndexFunc(r.config.Steps, func(s Step) bool { return string(s.Name) == name })
	if level == 0 && name != "0" {
		return fmt.Errorf("no step %q", name)
	}
	d, err := time.ParseDuration(span)
	r.m.SetOverride(&Override{Kind: Pin, Level: level, Until: r.w.now.Add(d), Reason: "maintenance"})
	return err
}

// add makes a group from "NAME key=value ...".
func (w *world) add(text string) error {
	f := strings.Fields(text)
	if len(f) == 0 {
		return fmt.Errorf("a flow needs a name")
	}
	b := groupBuilder{g: &group{name: f[0], life: 60, began: w.now}, from: netip.MustParsePrefix("198.18.0.0/15"), n: 1}
	for _, field := range f[1:] {
		key, value, _ := strings.Cut(field, "=")
		if err := b.set(key, value); err != nil {
			return fmt.Errorf("%s: %w", field, err)
		}
	}
	b.g.timeout = classTimeout[b.g.class]
	p := netip.PrefixFrom(b.from.Addr(), cmp.Or(b.bits, b.from.Addr().BitLen()))
	for range b.n {
		b.g.sources = append(b.g.sources, &source{prefix: p, entries: b.entries})
		p = netip.PrefixFrom(netipx.PrefixLastIP(p).Next(), p.Bits())
	}
	w.groups = append(w.groups, b.g)
	return nil
}

// groupBuilder is a group on its way, and how many sources it gets.
type groupBuilder struct {
	g       *group
	from    netip.Prefix
	n       int
	bits    int // of a source's network, 0 for an address
	entries float64
}

// set takes one "key=value".
func (b *groupBuilder) set(key, value string) (err error) {
	g := b.g
	switch key {
	case "sources":
		b.n, err = strconv.Atoi(value)
	case "bits":
		b.bits, err = strconv.Atoi(value)
	case "from":
		b.from, err = netip.ParsePrefix(value)
	case "entries":
		b.entries, err = strconv.ParseFloat(value, 64)
	case "rate":
		g.rate, err = strconv.ParseFloat(value, 64)
	case "life":
		var d time.Duration
		d, err = time.ParseDuration(value)
		g.life = d.Seconds()
	case "to":
		g.to, err = ParseSelector(strings.ReplaceAll(value, "_", " "))
	case "pulse":
		on, off, _ := strings.Cut(value, "/")
		if g.pulse[0], err = time.ParseDuration(on); err == nil {
			g.pulse[1], err = time.ParseDuration(off)
		}
	case "random":
		g.random = true
	case "stray":
		g.stray = true
	case "one-way":
		g.oneWay = true
	case "every":
		g.every, err = time.ParseDuration(value)
	case "over":
		g.over = true
	case "speaks":
		g.speaks = true
	case "closed":
		g.closed = true
	case "class":
		for g.class = 0; g.class < NumClasses && g.class.String() != value; {
			g.class++
		}
		if g.class == NumClasses {
			return fmt.Errorf("no such class")
		}
	default:
		return fmt.Errorf("unknown word")
	}
	return err
}
