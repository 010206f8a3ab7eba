package policy

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
)

// OrdinaryDay is what a host looks like while nothing is wrong with it. It is learnt at level 0 only, while
// the table does not fill faster than it should, so a flood can't teach it: what ctguard does about a
// flood is measured against the hours before. A host that is never at level 0 learns while its table is steady.
//
// The zero value knows nothing. Fields are exported to be kept on disk.
type OrdinaryDay struct {
	Learnt  time.Duration           `json:"learnt"`            // how much calm time it was learnt from
	Steady  bool                    `json:"steady,omitempty"`  // not in calm, but while the table was steady
	Updated time.Time               `json:"updated"`           // when a census last taught it something
	Fitted  float64                 `json:"fitted"`            // the most entries that the table had, fading
	Sources map[Source]*Usual       `json:"sources,omitempty"` // bounded; see [usualSources]
	Silent  map[FlowClass]time.Time `json:"silent,omitempty"`  // classes without answers, and when seen last
	OneWay  int                     `json:"one_way"`           // TCP flows that last and are seen in one direction only
	Flows   bool                    `json:"flows"`             // OneWay was looked for
	Invalid float64                 `json:"invalid"`           // INVALID packets a second
	Opens   float64                 `json:"opens"`             // new work a second, see [Arrivals]: its peak, fading
	// silences after which conversations went on, by sysctl name of their timeout, where a floor is no longer
	Silences map[string]Silence `json:"silences,omitempty"`

	crowds         []Source // sources that usually have so much that many users must be behind them
	invalid, opens pace
	watched        time.Duration        // how long the rates were watched by this process
	oneWay         map[uint32]time.Time // the one-way flows of the newest census by id, and when each will expire
	oneWayAt       time.Time            // of that census
}

// Usual is what one source has on an ordinary day, in entries: peaks that rise over minutes and fade over a day.
type Usual struct {
	Assured   float64 `json:"assured"`
	Transient float64 `json:"transient"`
}

// How fast an ordinary day is learnt and forgotten.
const (
	usualGrowth  = 5 * time.Minute    // a source's usual holding grows to what it holds over this time
	usualFade    = 24 * time.Hour     // and fades over this
	usualSources = 16384              // sources remembered, those with the most entries
	leastUsual   = 2                  // entries of a source that are worth remembering
	longestGap   = 2 * time.Minute    // two censuses further apart count as if they were not
	silentFor    = 24 * time.Hour     // how long a class without answers is remembered
	silentSeen   = 5                  // entries of a class that a census must see
	staleDay     = 7 * 24 * time.Hour // a day that was learnt longer ago is a stranger's
	opensFade    = 10 * time.Minute   // a peak of new work fades to a third over this
	invalidMean  = time.Minute        // what INVALID packets are averaged over
)

// Known reports whether anything was learnt about who is here: a source without a usual holding is a
// newcomer only then.
func (d *OrdinaryDay) Known() bool { return !d.Updated.IsZero() }

// Fresh reports whether a day that was kept on disk may still be used.
func (d *OrdinaryDay) Fresh(now time.Time) bool {
	return d.Known() && now.Sub(d.Updated) < staleDay
}

// Move turns every time of a day that was kept on disk into another clock's. A day from the future is one of a host
// whose clock was behind when it started, and counts as of now: who is known must not be a stranger for it.
func (d *OrdinaryDay) Move(to func(time.Time) time.Time, now time.Time) {
	at := func(t time.Time) time.Time {
		if t = to(t); t.After(now) {
			return now
		}
		return t
	}
	d.Updated = at(d.Updated)
	for class, seen := range d.Silent {
		d.Silent[class] = at(seen)
	}
	for name, silence := range d.Silences {
		silence.Seen = at(silence.Seen)
		d.Silences[name] = silence
	}
}

// Usual returns what a source usually has. All of them together never have more than what fitted the
// table in calm.
func (d *OrdinaryDay) Usual(source Source) Usual {
	u := d.Sources[source]
	if u == nil {
		return Usual{}
	}
	return *u
}

// Zoned reports whether any source was in another conntrack zone than the default one.
func (d *OrdinaryDay) Zoned() bool {
	for source := range d.Sources {
		if source.Zone != 0 {
			return true
		}
	}
	return false
}

// ordinaryInvalid is the part of a host's new work that may be INVALID packets: late ones of connections that are over.
const ordinaryInvalid = 0.01

// invalidIsOrdinary reports whether more than atMost INVALID packets a second are part of an ordinary day: where this
// host sees one direction of connections, all but their first packets are.
func (d *OrdinaryDay) invalidIsOrdinary(atMost float64) bool {
	return d.Invalid > max(atMost, ordinaryInvalid*d.Opens)
}

// oneSided reports whether TCP without answers is conversations here, as far as is known: this host sees one direction
// of them (direct server return, asymmetric routes).
func (d *OrdinaryDay) oneSided(atMost float64) bool {
	return d.OneWay > 0 || d.invalidIsOrdinary(atMost)
}

// DayStatus is what is known of an ordinary day, for status.
type DayStatus struct {
	Known      bool       `json:"known"`
	Waits      string     `json:"waits"`          // why nothing is known, and what helps; empty where it only takes time
	Steady     bool       `json:"steady"`         // the table has no calm: it was learnt while it was steady
	Learnt     float64    `json:"learnt_seconds"` // how much calm time it was learnt from
	Updated    *time.Time `json:"updated"`        // when a census last taught it something; null while nothing is known
	Fitted     int        `json:"fitted_entries"` // the most entries that the table had in calm
	Sources    int        `json:"sources"`        // with a usual holding
	OneWay     int        `json:"one_way_flows"`  // lasting TCP connections that this host sees one direction of
	Invalid    float64    `json:"invalid_per_second"`
	Unanswered []string   `json:"unanswered_classes"` // that nobody answers here, such as an overlay
	// seconds that conversations are silent for and go on all the same, by sysctl name of their timeout, where its
	// floor is no longer: that timeout is not made shorter than this
	Silences map[string]int `json:"silences"`
	// sources with forty times the median of usual holdings and more, the largest first: many users behind one address?
	Crowds []Source `json:"crowds"`
}

// Status returns what is known.
func (d *OrdinaryDay) Status() DayStatus {
	s := DayStatus{Known: d.Known(), Steady: d.Steady, Learnt: math.Round(d.Learnt.Seconds()), Fitted: int(d.Fitted),
		Sources: len(d.Sources), OneWay: d.OneWay, Invalid: math.Round(10*d.Invalid) / 10, Unanswered: []string{},
		Silences: make(map[string]int), Crowds: append([]Source{}, d.crowds...)}
	for name, silence := range d.Silences {
		s.Silences[name] = silence.Seconds
	}
	if s.Known {
		updated := d.Updated // a copy: this status is read while the day goes on
		s.Updated = &updated
	}
	for class := range d.Silent {
		s.Unanswered = append(s.Unanswered, class.String())
	}
	slices.Sort(s.Unanswered)
	return s
}

// String says in a line what is known.
func (s DayStatus) String() string {
	if !s.Known {
		text := "not known yet: nobody loses a conversation meanwhile"
		if s.Waits != "" {
			text += "; " + s.Waits
		}
		return text
	}
	from := "calm"
	if s.Steady {
		from = "a steady table"
	}
	text := fmt.Sprintf("learnt from %s of %s; %d entries fitted, %d sources with a usual holding",
		time.Duration(s.Learnt)*time.Second, from, s.Fitted, s.Sources)
	if s.OneWay > 0 {
		text += fmt.Sprintf(", %d one-way connections", s.OneWay)
	}
	if s.Invalid >= 1 {
		text += fmt.Sprintf(", %.0f INVALID a second", s.Invalid)
	}
	if len(s.Unanswered) > 0 {
		text += ", never answered: " + strings.Join(s.Unanswered[:min(5, len(s.Unanswered))], " ")
	}
	for _, name := range slices.Sorted(maps.Keys(s.Silences)) {
		text += fmt.Sprintf(", %s goes on after %s of silence", strings.TrimPrefix(name, "nf_conntrack_"),
			time.Duration(s.Silences[name])*time.Second)
	}
	if len(s.Crowds) > 0 {
		text += fmt.Sprintf("; %s usually has more than %d times the median (a weight in %s makes room for many users "+
			"behind one address)", s.Crowds[0], crowdTimes, weightsKey)
	}
	return text
}

// A crowd is many users behind one address: it usually has crowdTimes the median, and at least leastCrowd entries.
const (
	crowdTimes = 40
	leastCrowd = 100
	mostCrowds = 5
)

// findCrowds looks for the addresses that many users must be behind.
func (d *OrdinaryDay) findCrowds() {
	type holder struct {
		source Source
		has    float64
	}
	all := make([]holder, 0, len(d.Sources))
	for p, u := range d.Sources {
		all = append(all, holder{p, u.Assured + u.Transient})
	}
	slices.SortFunc(all, func(a, b holder) int {
		return cmp.Or(cmp.Compare(b.has, a.has), a.source.Compare(b.source))
	})
	d.crowds = nil
	for _, h := range all[:min(len(all), mostCrowds)] {
		if h.has >= max(leastCrowd, crowdTimes*all[len(all)/2].has) {
			d.crowds = append(d.crowds, h.source)
		}
	}
}

// part returns what is left of each usual holding so that all of them fit.
func (d *OrdinaryDay) part() float64 {
	sum := 0.0
	for _, u := range d.Sources {
		sum += u.Assured + u.Transient
	}
	if sum <= d.Fitted {
		return 1
	}
	return d.Fitted / sum
}

// Unanswered reports whether a class is one that nobody answers on an ordinary day: an overlay whose
// directions have source ports of their own, syslog, flow exports, media.
func (d *OrdinaryDay) Unanswered(class FlowClass) bool {
	_, known := d.Silent[class]
	return known
}

// observe takes one observation in; only while ordinary does it learn.
func (d *OrdinaryDay) observe(o Observation, ordinary bool) {
	if o.Census != nil {
		d.learnOneWay(o.Census)
		d.learnSilences(o.Census)
	}
	before := d.opens.at
	invalid := rateSince(&d.invalid, o.Time, o.Kernel.Invalid)
	opens := d.opens.update(o.Time, o.Arrivals.TCPOpens+o.Arrivals.UDPDatagrams+o.Arrivals.Echoes)
	if !ordinary || before.IsZero() {
		return
	}
	dt := min(max(0, o.Time.Sub(before)), longestGap)
	d.watched += dt
	// The mean is right from the first second on: until there is a whole span to look back at, it is the mean of
	// what there was.
	if over := max(min(d.watched, invalidMean), dt); over > 0 {
		d.Invalid += dt.Seconds() / over.Seconds() * (invalid - d.Invalid)
	}
	d.Opens = max(opens, d.Opens*fade(dt, opensFade))
	d.Learnt += dt
	if o.Census != nil {
		d.learn(o)
	}
}

// rateSince returns a counter's rate since it was last read, not smoothed.
func rateSince(p *pace, now time.Time, value uint64) float64 {
	at, was := p.at, p.value
	p.update(now, value)
	if dt := now.Sub(at).Seconds(); !at.IsZero() && dt > 0 {
		return float64(since(value, was)) / dt
	}
	return 0
}

// learn takes a census of an ordinary moment in.
func (d *OrdinaryDay) learn(o Observation) {
	c := o.Census
	gap := min(max(0, c.Time.Sub(d.Updated)), longestGap)
	first := !d.Known()
	d.Fitted = max(float64(o.Count), d.Fitted*fade(gap, usualFade))
	d.learnSources(c, gap, first)
	d.learnClasses(c)
	d.findCrowds()
	d.Updated = c.Time
}

func fade(dt, over time.Duration) float64 { return math.Exp(-dt.Seconds() / over.Seconds()) }

// learnSources lets each source's usual holding rise towards what it holds now. The first census is believed at
// once, and until there is as much to look back at as growth takes, growth is faster.
func (d *OrdinaryDay) learnSources(c *Census, gap time.Duration, first bool) {
	gain := 1.0
	if !first {
		gain = min(1, gap.Seconds()/max(min(d.Learnt, usualGrowth), gap).Seconds())
	}
	zones := d.Zoned()
	for source, u := range d.Sources {
		u.Assured, u.Transient = u.Assured*fade(gap, usualFade), u.Transient*fade(gap, usualFade)
		if u.Assured+u.Transient < leastUsual/2 {
			delete(d.Sources, source)
		}
	}
	if d.Sources == nil {
		d.Sources = make(map[Source]*Usual)
	}
	scale := float64(max(c.Total, c.Seen)) / float64(max(c.Seen, 1))
	if c.Whole {
		scale = 1
	}
	for _, h := range c.Sources {
		assured := scale * float64(h.Classes[Assured])
		transient := scale*float64(h.Entries) - assured
		u := d.Sources[h.Source()]
		if u == nil {
			if assured+transient < leastUsual {
				continue
			}
			u = &Usual{}
			d.Sources[h.Source()] = u
		}
		gain := gain
		if h.Zone != 0 && !zones { // an older ctguard, which learnt the day, knew no zones
			gain = 1
		}
		u.Assured += gain * max(0, assured-u.Assured)
		u.Transient += gain * max(0, transient-u.Transient)
	}
	d.forgetSmallest()
}

// forgetSmallest keeps the bound on how many sources are remembered.
func (d *OrdinaryDay) forgetSmallest() {
	if len(d.Sources) <= usualSources {
		return
	}
	all := make([]Source, 0, len(d.Sources))
	for p := range d.Sources {
		all = append(all, p)
	}
	slices.SortFunc(all, func(a, b Source) int {
		x, y := d.Sources[a], d.Sources[b]
		return cmp.Or(cmp.Compare(y.Assured+y.Transient, x.Assured+x.Transient), a.Compare(b))
	})
	for _, p := range all[usualSources:] {
		delete(d.Sources, p)
	}
}

// learnClasses remembers the classes without answers. One that is answered is none of them, however long ago it was.
func (d *OrdinaryDay) learnClasses(c *Census) {
	for class, seen := range d.Silent {
		if c.Time.Sub(seen) > silentFor {
			delete(d.Silent, class)
		}
	}
	for _, f := range classes(c) {
		switch {
		case float64(f.replied) > answeredPart*float64(f.entries):
			delete(d.Silent, f.class)
		case f.class.Protocol != tcp && f.entries >= silentSeen: // TCP without answers is no conversation, or a one-way flow
			if d.Silent == nil {
				d.Silent = make(map[FlowClass]time.Time)
			}
			d.Silent[f.class] = c.Time
		}
	}
}

// How one-way flows are told from strays.
const (
	renewed    = 2 * time.Second // so much later than was foreseen must an entry expire: the kernel says whole seconds
	oneWayGap  = 3 * time.Second // so far apart must two censuses be
	mostOneWay = 256             // a census that lists as many may have left some out
)

// learnOneWay counts the one-way flows that a packet renewed since an earlier census; strays are not renewed. It
// learns at any time: a flood of strays teaches nothing, and while there are too many of them to be listed, nothing is
// learnt.
func (d *OrdinaryDay) learnOneWay(c *Census) {
	if len(c.OneWay) >= mostOneWay || c.Time.Sub(d.oneWayAt) < oneWayGap {
		return
	}
	lasting := 0
	now := make(map[uint32]time.Time, len(c.OneWay))
	for _, f := range c.OneWay {
		expires := c.Time.Add(time.Duration(f.Left) * time.Second)
		if foreseen, seen := d.oneWay[f.ID]; seen && expires.Sub(foreseen) >= renewed {
			lasting++
		}
		now[f.ID] = expires
	}
	d.Flows = d.Flows || d.oneWay != nil
	d.oneWay, d.oneWayAt = now, c.Time
	d.OneWay = max(lasting, d.OneWay*7/8) // one that is silent for a while has not gone
}

// MarshalText writes a class as its String does, to be a key of a JSON object.
func (c FlowClass) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// UnmarshalText reads what MarshalText wrote.
func (c *FlowClass) UnmarshalText(text []byte) error {
	name, port, _ := strings.Cut(string(text), "/")
	class := FlowClass{}
	var err error
	switch name {
	case "tcp", "udp":
		class.Protocol = map[string]uint8{"tcp": tcp, "udp": udp}[name]
		var n uint64
		n, err = strconv.ParseUint(port, 10, 16)
		class.Port = uint16(n)
	default:
		var n uint64
		n, err = strconv.ParseUint(strings.TrimPrefix(name, "protocol "), 10, 8)
		class.Protocol = uint8(n)
	}
	if err != nil {
		return fmt.Errorf("%q is no class of flows", text)
	}
	*c = class
	return nil
}
