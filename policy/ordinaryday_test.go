package policy

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

var dayStart = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// calmCensus is a whole census of sources that hold so many assured entries each.
func calmCensus(at time.Time, held map[string]int) *Census {
	c := &Census{Time: at, Whole: true, Protocols: map[uint8]int{}, ProtocolsReplied: map[uint8]int{}}
	for source, n := range held {
		h := Holding{Prefix: netip.MustParsePrefix(source), Entries: n}
		h.Classes[Assured], h.Proven = n, n
		c.Sources = append(c.Sources, h)
		c.Seen += n
	}
	c.Total = c.Seen
	return c
}

// see shows a day one moment: ticks a quarter of a second apart, and a census with the last of them.
func see(d *OrdinaryDay, at time.Time, span time.Duration, c *Census) {
	for t := at.Add(-span); t.Before(at); t = t.Add(250 * time.Millisecond) {
		d.observe(Observation{Time: t, Count: c.Total}, true)
	}
	d.observe(Observation{Time: at, Count: c.Total, Census: c}, true)
}

// What the first census saw is believed; who comes later earns a usual holding over minutes.
func TestUsualHoldingGrowsOverMinutes(t *testing.T) {
	var d OrdinaryDay
	const old, newcomer = "192.0.2.1/32", "198.51.100.1/32"
	now := dayStart
	see(&d, now, time.Second, calmCensus(now, map[string]int{old: 100}))
	if u := d.Usual(sourceOf(old)); u.Assured != 100 {
		t.Errorf("after the first census: %+v, want 100 assured", u)
	}
	for range 60 { // an hour of calm
		now = now.Add(time.Minute)
		see(&d, now, time.Minute, calmCensus(now, map[string]int{old: 100}))
	}
	now = now.Add(30 * time.Second)
	see(&d, now, 30*time.Second, calmCensus(now, map[string]int{old: 100, newcomer: 1000}))
	if u := d.Usual(sourceOf(newcomer)); u.Assured > 150 {
		t.Errorf("half a minute made %.0f of 1000 usual", u.Assured)
	}
	for range 20 {
		now = now.Add(time.Minute)
		see(&d, now, time.Minute, calmCensus(now, map[string]int{old: 100, newcomer: 1000}))
	}
	if u := d.Usual(sourceOf(newcomer)); u.Assured < 900 {
		t.Errorf("twenty minutes made only %.0f of 1000 usual", u.Assured)
	}
	if u := d.Usual(sourceOf(old)); u.Assured < 95 {
		t.Errorf("who was always here has %.0f of 100", u.Assured)
	}
}

// Whatever a flood does, it teaches nothing: only ordinary moments count.
func TestFloodTeachesNothing(t *testing.T) {
	var d OrdinaryDay
	see(&d, dayStart, time.Second, calmCensus(dayStart, map[string]int{"192.0.2.1/32": 20}))
	flood := calmCensus(dayStart.Add(time.Minute), map[string]int{"198.51.100.1/32": 50000})
	d.observe(Observation{Time: dayStart.Add(time.Minute), Count: 50000, Census: flood,
		Kernel: KernelCounters{Invalid: 1e6}}, false)
	if u := d.Usual(sourceOf("198.51.100.1/32")); u != (Usual{}) {
		t.Errorf("the flood's source has a usual holding: %+v", u)
	}
	if d.Invalid > 1 || d.Fitted > 20 {
		t.Errorf("the flood taught %.0f INVALID a second, %.0f entries that fitted", d.Invalid, d.Fitted)
	}
}

// INVALID packets a second are right from the first seconds on, not after a minute.
func TestInvalidIsRightAtOnce(t *testing.T) {
	var d OrdinaryDay
	for i := range 12 { // three seconds
		at := dayStart.Add(time.Duration(i) * 250 * time.Millisecond)
		d.observe(Observation{Time: at, Kernel: KernelCounters{Invalid: uint64(i) * 13 / 4}}, true)
	}
	if d.Invalid < 11 || d.Invalid > 15 {
		t.Errorf("learnt %.1f INVALID packets a second of 13", d.Invalid)
	}
}

// A stray packet's entry only gets older; that of a flow seen one way is renewed.
func TestOneWayFlowsThatLast(t *testing.T) {
	var d OrdinaryDay
	census := func(after time.Duration, flows ...OneWayFlow) {
		at := dayStart.Add(after)
		c := calmCensus(at, map[string]int{"192.0.2.1/32": 10})
		c.OneWay = flows
		see(&d, at, time.Second, c)
	}
	census(0, OneWayFlow{1, 300}, OneWayFlow{2, 300})
	census(10*time.Second, OneWayFlow{1, 290}, OneWayFlow{2, 290}, OneWayFlow{3, 300})
	if d.OneWay != 0 {
		t.Errorf("%d strays count as lasting", d.OneWay)
	}
	census(20*time.Second, OneWayFlow{1, 280}, OneWayFlow{2, 299}, OneWayFlow{3, 290})
	if d.OneWay != 1 {
		t.Errorf("%d flows last, want 1", d.OneWay)
	}
}

// Classes without answers are remembered until they have some; unanswered TCP is no conversation.
func TestSilentClasses(t *testing.T) {
	var d OrdinaryDay
	vxlan, names, scan := FlowClass{udp, 4789}, FlowClass{udp, 53}, FlowClass{tcp, 23}
	c := calmCensus(dayStart, map[string]int{"192.0.2.1/32": 10})
	c.Ports = []PortCount{{udp, 4789, 100, 0}, {udp, 53, 100, 90}, {tcp, 23, 100, 0}}
	c.Protocols[47], c.ProtocolsReplied[47] = 9, 0
	see(&d, dayStart, time.Second, c)
	for class, want := range map[FlowClass]bool{vxlan: true, names: false, scan: false, {Protocol: 47}: true} {
		if d.Unanswered(class) != want {
			t.Errorf("%s: unanswered %t, want %t", class, !want, want)
		}
	}
	c = calmCensus(dayStart.Add(time.Minute), map[string]int{"192.0.2.1/32": 10})
	c.Ports = []PortCount{{udp, 4789, 100, 50}}
	see(&d, dayStart.Add(time.Minute), time.Second, c)
	if d.Unanswered(vxlan) {
		t.Error("a class that has answers now still counts as one without")
	}
}

// Whatever is learnt, it stays within its bounds, and a day that was kept comes back as it was.
func TestOrdinaryDayBounds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var d OrdinaryDay
		now := dayStart
		most := 0
		for range rapid.IntRange(1, 6).Draw(t, "censuses") {
			now = now.Add(time.Duration(rapid.IntRange(1, 600).Draw(t, "seconds")) * time.Second)
			held := make(map[string]int)
			for range rapid.IntRange(0, 8).Draw(t, "sources") {
				p := netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 51, 100, byte(rapid.IntRange(0, 9).Draw(t, "source"))}), 32)
				held[p.String()] = rapid.IntRange(1, 5000).Draw(t, "entries")
			}
			c := calmCensus(now, held)
			most = max(most, c.Total)
			see(&d, now, time.Second, c)
		}
		sum := 0.0
		for p, u := range d.Sources {
			if u.Assured < 0 || u.Transient < 0 {
				t.Fatalf("%s usually has %+v", p, *u)
			}
			sum += u.Assured + u.Transient
		}
		if fits := sum * d.part(); fits > float64(most)*1.0001 {
			t.Fatalf("usual holdings sum up to %.0f, the table never had more than %d", fits, most)
		}
		text, err := json.Marshal(&d)
		if err != nil {
			t.Fatal(err)
		}
		var again OrdinaryDay
		if err := json.Unmarshal(text, &again); err != nil {
			t.Fatal(err)
		}
		if len(again.Sources) != len(d.Sources) || again.Fitted != d.Fitted || !again.Updated.Equal(d.Updated) {
			t.Fatalf("kept %s, which is not what was learnt", text)
		}
	})
}

// An address with many users behind it is named, and the key that helps; where all have as much, nobody is.
func TestCrowds(t *testing.T) {
	held := map[string]int{"203.0.113.7/32": 500}
	for i := range 9 {
		held[fmt.Sprintf("192.0.2.%d/32", i)] = 12
	}
	for want, crowd := range map[string]string{"": "192.0.2.99/32", "203.0.113.7/32": "203.0.113.7/32"} {
		h := maps.Clone(held)
		if want == "" {
			delete(h, "203.0.113.7/32")
			h[crowd] = 470
		}
		var d OrdinaryDay
		d.learn(Observation{Count: 600, Census: calmCensus(dayStart, h)})
		got := d.Status()
		if (want == "") != (len(got.Crowds) == 0) || want != "" && (got.Crowds[0].String() != want ||
			!strings.Contains(got.String(), want+" usually has more than 40 times the median")) {
			t.Errorf("%q: %v, %s", crowd, got.Crowds, got)
		}
	}
}

// A status is somebody else's to read while the day goes on.
func TestDayStatusIsACopy(t *testing.T) {
	var d OrdinaryDay
	see(&d, dayStart, time.Minute, calmCensus(dayStart, map[string]int{"192.0.2.1/32": 10}))
	d.Silences = map[string]Silence{established: {36000, dayStart}}
	status := d.Status()
	before := *status.Updated
	later := calmCensus(dayStart.Add(time.Hour), map[string]int{"192.0.2.1/32": 10})
	later.Silences = map[string]int{established: 72000}
	see(&d, dayStart.Add(time.Hour), time.Minute, later)
	if d.Updated.Equal(before) || !status.Updated.Equal(before) || status.Silences[established] != 36000 {
		t.Errorf("updated %s, was %s; silences %v", *status.Updated, before, status.Silences)
	}
}
