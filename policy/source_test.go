package policy

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// What a source is called is read back as the same source; one in the default zone is called as its prefix is.
func TestSourceText(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := Source{Zone: rapid.Uint16().Draw(t, "zone"), Prefix: rapid.SampledFrom([]netip.Prefix{
			netip.MustParsePrefix("192.0.2.1/32"), netip.MustParsePrefix("2001:db8::/64")}).Draw(t, "prefix")}
		var back Source
		if err := back.UnmarshalText([]byte(s.String())); err != nil || back != s {
			t.Fatalf("%q is read as %v (%v)", s, back, err)
		}
	})
	for want, s := range map[string]Source{
		"192.0.2.1/32": sourceOf("192.0.2.1/32"), "192.0.2.1/32 zone 5": {netip.MustParsePrefix("192.0.2.1/32"), 5},
	} {
		if short := strings.Replace(want, "/32", "", 1); s.String() != want || s.Short() != short {
			t.Errorf("%q and %q, want %q and %q", s, s.Short(), want, short)
		}
	}
	for _, text := range []string{"", "192.0.2.1", "192.0.2.1/32 zone", "192.0.2.1/32 zone 65536",
		"192.0.2.1/32 zone -1"} {
		if err := new(Source).UnmarshalText([]byte(text)); err == nil {
			t.Errorf("%q is a source", text)
		}
	}
}

// tenants ticks a machine on a full table of these sources, until what heavy ones are limited to is known.
func tenants(m *Machine, zones bool, sources ...Holding) Decision {
	census := &Census{Whole: true, Sources: sources, Distinct: len(sources)}
	for _, s := range sources {
		census.Seen += s.Entries
		census.Classes[Assured] += s.Entries
		if s.Zone != 0 {
			census.Zoned += s.Entries
		}
	}
	census.Total = census.Seen
	o := Observation{Count: census.Seen, Capacity: census.Seen, Census: census,
		Host: Host{Admin: map[string]int{tcpLoose: 1}, Zones: zones}}
	var events []Event
	for i := range 2 {
		o.Time = dayStart.Add(time.Duration(i) * time.Second)
		census.Time = o.Time
		events = append(events, m.Tick(o).Events...)
	}
	d := m.decision
	d.Events = events
	return d
}

func tenant(zone uint16, entries int) Holding {
	return Holding{Prefix: netip.MustParsePrefix("192.0.2.10/32"), Zone: zone, Entries: entries,
		Classes: [NumClasses]int{Assured: entries}, Proven: entries}
}

// One address in three zones is three sources: who floods in one is limited and loses entries there. Where zones are
// not in use a limit is for the address, as it always was.
func TestTenants(t *testing.T) {
	for name, c := range map[string]struct {
		zones   bool
		sources []Holding
		want    Limit
	}{
		"in a zone": {false, []Holding{tenant(1, 30_000), tenant(2, 100), tenant(0, 100)},
			Limit{Zone: 1, Zoned: true}},
		"in the default zone": {false, []Holding{tenant(0, 30_000), tenant(2, 100)},
			Limit{Zone: 0, Zoned: true}},
		"before anybody is in a zone that there is": {true, []Holding{tenant(0, 30_000)}, Limit{Zone: 0, Zoned: true}},
		"without zones": {false, []Holding{tenant(0, 30_000)}, Limit{}},
	} {
		m := New(Defaults(Server))
		m.ordinary = OrdinaryDay{Updated: dayStart, Fitted: 100}
		p := tenants(m, c.zones, c.sources...).Posture
		if len(p.Limits) != 1 || p.Limits[0].Zone != c.want.Zone || p.Limits[0].Zoned != c.want.Zoned {
			t.Errorf("%s: limits %+v, want one like %+v", name, p.Limits, c.want)
		}
		if len(p.Caps) != 1 || p.Caps[0].Zone != c.want.Zone || p.Caps[0].SpareAssured {
			t.Errorf("%s: caps %+v", name, p.Caps)
		}
		text := strings.Join(m.Explain(netip.MustParsePrefix("192.0.2.10/32")), "\n")
		if want := "limited as " + p.Limits[0].Source().String() + " (limit)"; !strings.Contains(text, want) {
			t.Errorf("%s: explain does not say %q:\n%s", name, want, text)
		}
		if n := strings.Count(text, "entries (fair share"); n != len(c.sources) {
			t.Errorf("%s: explain tells of %d of %d sources:\n%s", name, n, len(c.sources), text)
		}
		m.Say(Word{Prefix: netip.MustParsePrefix("192.0.2.10/32"), Release: true, Until: dayStart.AddDate(1, 0, 0)})
		if p := tenants(m, c.zones, c.sources...).Posture; len(p.Limits) > 0 {
			t.Errorf("%s: limits %+v of an address that was released", name, p.Limits)
		}
	}
}

// There are limits in so many zones at a time. In the others nobody loses a conversation, and that is told once.
func TestTooManyZones(t *testing.T) {
	var sources []Holding
	for zone := range uint16(2 * MostZones) {
		sources = append(sources, tenant(zone, 1000))
	}
	m := New(Defaults(Server))
	m.ordinary = OrdinaryDay{Updated: dayStart, Fitted: 100}
	d := tenants(m, false, sources...)
	zones := map[uint16]bool{}
	for _, l := range d.Posture.Limits {
		zones[l.Zone] = true
	}
	if len(zones) != MostZones {
		t.Errorf("limits in %d zones, want %d", len(zones), MostZones)
	}
	for _, c := range d.Posture.Caps {
		if c.SpareAssured == zones[c.Zone] {
			t.Errorf("zone %d: limited %v, and assured entries stay: %v", c.Zone, zones[c.Zone], c.SpareAssured)
		}
	}
	told := slices.DeleteFunc(d.Events, func(e Event) bool { return !strings.Contains(e.Reason, "zones") })
	if len(told) != 1 || told[0].Kind != DegradedEvent {
		t.Errorf("told %+v", told)
	}
}
