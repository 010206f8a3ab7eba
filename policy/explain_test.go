package policy

import (
	"net/netip"
	"strings"
	"testing"
)

// Below evict, explain says why nothing happens to a source, and what would be its own if evict came in now.
func TestExplainBeforeEvict(t *testing.T) {
	heavy, light := netip.MustParsePrefix("192.0.2.7/32"), netip.MustParsePrefix("198.51.100.1/32")
	holding := func(p netip.Prefix, n int) Holding {
		return Holding{Prefix: p, Entries: n, Classes: [NumClasses]int{Assured: n}}
	}
	census := &Census{Time: dayStart, Total: 400, Seen: 400, Whole: true, Distinct: 2,
		Sources: []Holding{holding(heavy, 390), holding(light, 10)}}
	off := Defaults(Server)
	for i := range off.Steps {
		if off.Steps[i].Name == Evict {
			off.Steps = append(off.Steps[:i:i], off.Steps[i+1:]...)
			break
		}
	}
	for name, c := range map[string]struct {
		cfg      Config
		capacity int
		source   netip.Prefix
		want     []string
	}{
		"room for all": {Defaults(Server), 10000, heavy, []string{"evict is not engaged, so ctguard limits and evicts nobody",
			"pressure is 4 %, and it comes in at 90 %", "holds about 390 entries (everybody fits: all of it)", "not limited"}},
		"too much": {Defaults(Server), 450, heavy, []string{"holds about 390 entries (fair share "}},
		"light":    {Defaults(Server), 450, light, []string{"holds about 10 entries (fair share "}},
		"a stranger": {Defaults(Server), 10000, netip.MustParsePrefix("203.0.113.1/32"),
			[]string{"it was not among the 2 largest sources"}},
		"off": {off, 10000, heavy, []string{"the configuration has evict off"}},
	} {
		m := New(c.cfg)
		m.SetOverride(&Override{Kind: Pin, Level: 0, Until: dayStart.AddDate(1, 0, 0), Reason: "test"})
		m.Tick(Observation{Time: dayStart, Count: 400, Capacity: c.capacity, Census: census})
		text := strings.Join(m.Explain(c.source), "\n")
		for _, want := range c.want {
			if !strings.Contains(text, want) {
				t.Errorf("%s: explain does not say %q:\n%s", name, want, text)
			}
		}
	}
	if lines := New(Defaults(Server)).Explain(heavy); len(lines) == 0 {
		t.Error("before the first tick explain says nothing")
	}
}
