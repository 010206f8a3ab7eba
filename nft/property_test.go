package nft

import (
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"ctguard/policy"
)

// draw makes states from small pools, so that prefixes overlap and selectors come back.
func draw() *rapid.Generator[Desired] {
	prefixes := rapid.SampledFrom([]string{
		"198.51.100.0/24", "198.51.100.0/31", "198.51.100.0/32", "198.51.100.1/32", "198.51.100.2/31", "198.51.100.255/32",
		"0.0.0.0/0", "255.255.255.255/32", "128.0.0.0/1", "0.0.0.0/32", "::ffff:198.51.100.1/128",
		"2001:db8::/32", "2001:db8::/64", "2001:db8:0:1::/64", "2001:db8::1/128", "::/0", "ffff::/16",
	})
	selectors := rapid.SampledFrom([]string{
		"tcp/80", "tcp/443", "udp/53", "udp/80", "echo", "multicast",
		"tcp/80 with 198.51.100.0/24", "tcp/80 with 198.51.100.128/25",
		"udp/53 with 2001:db8::/33", "tcp/22 with ::/0",
		"echo with 198.51.100.1/32", "echo with 2001:db8::/64",
		"tcp", "udp", "all", "tcp on eth0", "udp/1-65535", "tcp/80 at 198.51.100.0/24",
		"udp/53 with ::/0 at 2001:db8::1/128 on eth0", "echo at 198.51.100.1/32",
		"tcp/443 at 203.0.113.1/32 on eth0 to 10.0.0.2:8443 by eth0", "udp/53 at 203.0.113.1/32 to 10.0.0.2:5353 by eth0",
	})
	limit := rapid.Custom(func(t *rapid.T) policy.Limit {
		l := policy.Limit{
			Prefix: prefix(prefixes.Draw(t, "prefix")),
			Kind:   rapid.SampledFrom([]policy.LimitKind{policy.LimitNew, policy.Block}).Draw(t, "kind"),
			Until:  rapid.SampledFrom([]time.Time{{}, now.Add(time.Hour), now.Add(2 * time.Hour), now}).Draw(t, "until"),
		}
		if l.Kind == policy.LimitNew && rapid.Bool().Draw(t, "zoned") {
			l.Zoned, l.Zone = true, rapid.SampledFrom([]uint16{0, 5, 50}).Draw(t, "zone")
		}
		return l
	})
	notrack := rapid.Custom(func(t *rapid.T) policy.Untracked {
		stages := []policy.Stage{policy.Watched, policy.Trial, policy.Freed, policy.Leaving}
		return tracked(rapid.SampledFrom(stages).Draw(t, "stage"), selectors.Draw(t, "selector"))[0]
	})
	return rapid.Custom(func(t *rapid.T) Desired {
		d := Desired{Posture: policy.Posture{
			DropInvalid: rapid.Bool().Draw(t, "invalid"),
			Uncounted:   rapid.Bool().Draw(t, "uncounted"),
			Notrack:     rapid.SliceOfN(notrack, 0, 4).Draw(t, "notrack"),
			Limits:      rapid.SliceOfN(limit, 0, 5).Draw(t, "limits"),
			LimitRate:   rapid.SampledFrom([]int{0, 1, 10}).Draw(t, "rate"),
			LimitBurst:  rapid.SampledFrom([]int{0, 20}).Draw(t, "burst"),
			Reject:      rapid.Bool().Draw(t, "reject"),
		}}
		for _, p := range rapid.SliceOfN(prefixes, 0, 3).Draw(t, "allow") {
			d.Allow = append(d.Allow, prefix(p))
		}
		return d
	})
}

var (
	blocks      = regexp.MustCompile(`(?ms)^\t\w+ [^\n]*\{\n.*?^\t\}\n`)
	prefixRates = regexp.MustCompile(`^\tchain (rate\S+) `)
	ofZone      = regexp.MustCompile(`^\t\w+ \w+_zone(\d+)`)
)

// parts sorts the parts of a listing, whose order is that of their making, and leaves out chains that
// are only kept because an element that ended may still point to them, and what zones without limits have kept.
func parts(listing string) []string {
	list := blocks.FindAllString(listing, -1)
	list = slices.DeleteFunc(list, func(block string) bool {
		if block == "\tchain zoned {\n\t}\n" {
			return true
		}
		if z := ofZone.FindStringSubmatch(block); z != nil && !strings.Contains(listing, "goto opening_zone"+z[1]+" ") {
			return true
		}
		m := prefixRates.FindStringSubmatch(block)
		return m != nil && !regexp.MustCompile(`: goto `+m[1]+`\b`).MatchString(listing)
	})
	slices.Sort(list)
	return list
}

// TestIncrementalIsFresh applies random states one after the other. After each the table must be what
// it would be had it been made for this state alone, and applying the state again must write nothing.
func TestIncrementalIsFresh(t *testing.T) {
	inNewNetNS(t)
	rapid.Check(t, func(t *rapid.T) {
		table, err := Open()
		if err != nil {
			t.Fatal(err)
		}
		defer table.Close()
		var last Desired
		for _, last = range rapid.SliceOfN(draw(), 1, 6).Draw(t, "states") {
			change := table.Apply
			if table.have != nil && last.Posture.HasRules() {
				change = table.update // Apply would make the table anew after an error
			}
			if err := change(last, now); err != nil {
				t.Fatal(err)
			}
			before, _ := table.conn.GetGen()
			if err := table.Apply(last, now); err != nil {
				t.Fatal(err)
			}
			if after, _ := table.conn.GetGen(); after.ID != before.ID {
				t.Fatalf("applying again wrote something")
			}
			if ok, err := table.Intact(); !ok || err != nil {
				t.Fatalf("intact: %v, %v", ok, err)
			}
			if _, err := table.Work(); err != nil {
				t.Fatal(err)
			}
		}
		incremental := listing()
		if err := table.Close(); err != nil {
			t.Fatal(err)
		}
		fresh, err := Open()
		if err != nil {
			t.Fatal(err)
		}
		defer fresh.Close()
		if err := fresh.Apply(last, now); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(parts(listing()), parts(incremental)); diff != "" {
			t.Fatalf("table (-fresh +incremental):\n%s", diff)
		}
	})
}

// listing is list where there may be no table.
func listing() string {
	out, _ := try("nft list table inet ctguard", "")
	for _, v := range volatile {
		out = v.what.ReplaceAllString(out, v.with)
	}
	if strings.HasPrefix(out, "Error") {
		return ""
	}
	return out
}
