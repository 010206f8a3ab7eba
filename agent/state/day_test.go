package state

import (
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"ctguard/policy"
)

// An ordinary day outlives its process while it is fresh; one that is old, of another version or damaged does not.
func TestDayOutlivesItsProcess(t *testing.T) {
	dir := t.TempDir()
	now := time.Now()
	source := policy.Source{Prefix: netip.MustParsePrefix("192.0.2.1/32")}
	day := &policy.OrdinaryDay{Updated: now, Fitted: 100, Sources: map[policy.Source]*policy.Usual{source: {Assured: 40}},
		Silent: map[policy.FlowClass]time.Time{{Protocol: 17, Port: 4789}: now}}
	if err := atUptime(dir, "this one", 0).KeepDay(day, now); err != nil {
		t.Fatal(err)
	}
	kept, err := atUptime(dir, "this one", time.Hour).Day(now.Add(time.Hour))
	if err != nil || kept.Usual(source).Assured != 40 || !kept.Unanswered(policy.FlowClass{Protocol: 17, Port: 4789}) {
		t.Errorf("kept %+v (%v)", kept, err)
	}
	month := 30 * 24 * time.Hour
	for _, boot := range []string{"this one", "the next one"} {
		if old, err := atUptime(dir, boot, month).Day(now.Add(month)); err != nil || old.Known() {
			t.Errorf("a month later, in %s: %+v (%v)", boot, old, err)
		}
	}
	for _, text := range []string{`{"version":3,"day":{}}`, `{"version":1,"day":{"sources":{"nonsense":{}}}}`, `{`} {
		if err := os.WriteFile(filepath.Join(dir, "ordinary.json"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if bad, err := At(dir).Day(now); err == nil || bad.Known() {
			t.Errorf("%s: %+v (%v)", text, bad, err)
		}
	}
}

// A day of a host without zones is one that older versions read; one with zones they leave to newer ones.
func TestDayWithZones(t *testing.T) {
	now := time.Now()
	address := netip.MustParsePrefix("192.0.2.1/32")
	for zone, version := range map[uint16]int{0: 1, 5: 2} {
		d := At(t.TempDir())
		source := policy.Source{Prefix: address, Zone: zone}
		day := &policy.OrdinaryDay{Updated: now, Sources: map[policy.Source]*policy.Usual{source: {Assured: 40}}}
		if err := d.KeepDay(day, now); err != nil {
			t.Fatal(err)
		}
		var kept keptDay
		text, err := os.ReadFile(d.day())
		if err == nil {
			err = json.Unmarshal(text, &kept)
		}
		if err != nil || kept.Version != version {
			t.Errorf("zone %d: version %d (%v), want %d", zone, kept.Version, err, version)
		}
		read, err := d.Day(now)
		if err != nil || read.Usual(source).Assured != 40 || len(read.Sources) != 1 {
			t.Errorf("zone %d: read %+v (%v)", zone, read, err)
		}
	}
}

// A day is written when it is first known, and then every five minutes, as long as it learns something.
func TestDayIsKeptNowAndThen(t *testing.T) {
	d := At(t.TempDir())
	now := time.Now()
	written := func() bool {
		err := os.Remove(d.day())
		return err == nil
	}
	day := &policy.OrdinaryDay{}
	for _, c := range []struct {
		name  string
		after time.Duration // since the last one
		news  bool
		want  bool
	}{
		{"nothing known", 0, false, false},
		{"first known", time.Second, true, true},
		{"a minute later", time.Minute, true, false},
		{"five minutes later", 5 * time.Minute, true, true},
		{"nothing new", 10 * time.Minute, false, false},
	} {
		if now = now.Add(c.after); c.news {
			day.Updated = now
		}
		if err := d.KeepDay(day, now); err != nil {
			t.Fatal(err)
		}
		if got := written(); got != c.want {
			t.Errorf("%s: written %t", c.name, got)
		}
	}
	var none *Dir // of a dry run
	if err := none.KeepDay(day, now); err != nil {
		t.Error(err)
	}
}
