package policy

import (
	"fmt"
	"math"
	"net/netip"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

func addressOf(text string) Source { return addressIn(netip.MustParseAddr(text)) }

// addressIn is the source of an address in the default zone.
func addressIn(a netip.Addr) Source {
	if a.Is6() {
		return Source{Prefix: netip.PrefixFrom(a, 64)}
	}
	return Source{Prefix: netip.PrefixFrom(a, 32)}
}

func sourceOf(prefix string) Source { return Source{Prefix: netip.MustParsePrefix(prefix)} }

// Usual holdings come first; growth and newcomers share the rest, each network of newcomers like one source.
func TestDivide(t *testing.T) {
	var crowd []claim
	for i := range 1000 { // newcomers below what ordinary users have, in networks of their own
		crowd = append(crowd, claim{addressOf(fmt.Sprintf("198.18.%d.1", i%250)), 12, 0, 1})
		crowd[i].source = addressIn(netip.AddrFrom4([4]byte{198, byte(i / 250), byte(i % 250), 1}))
	}
	var customer []claim
	for i := range 5000 {
		customer = append(customer, claim{addressOf(fmt.Sprintf("2001:db8:1:%x::1", i)), 7, 0, 1})
	}
	users := func(n int, has, usual float64) (list []claim) {
		for i := range n {
			user := netip.AddrFrom4([4]byte{192, 0, byte(i / 250), byte(i % 250)})
			list = append(list, claim{addressIn(user), has, usual, 1})
		}
		return list
	}
	for _, c := range []struct {
		name         string
		users, crowd []claim
		target       float64
		most         float64 // what one of the crowd may keep at most
		floor        float64
	}{
		{"newcomers with less than users", users(1000, 18, 18), crowd, 18000 + 6000, 6, 4},
		{"one customer with a /48", users(1000, 11, 11), customer, 11000 + 6000, 2.3, 4},
		{"a shared address among bots", []claim{{addressOf("192.0.2.1"), 300, 300, 1}}, crowd, 300 + 6000, 6, 4},
	} {
		t.Run(c.name, func(t *testing.T) {
			all := slices.Concat(c.users, c.crowd)
			d := divide(all, 0, c.target, c.floor, true)
			for i, one := range all {
				if i < len(c.users) && d.keep[i] < one.usual {
					t.Fatalf("%s keeps %.1f of its usual %.0f", one.source, d.keep[i], one.usual)
				}
				if i >= len(c.users) && d.keep[i] > c.most+1e-9 {
					t.Fatalf("newcomer %s keeps %.2f, want at most %.2f", one.source, d.keep[i], c.most)
				}
			}
		})
	}
}

// Whoever comes, nobody is asked for what it usually has, and what is given out fits the target as far as usual
// holdings and floors leave room.
func TestDivideKeepsTheUsual(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 30).Draw(t, "sources")
		claims := make([]claim, n)
		all := 0.0
		for i := range claims {
			claims[i] = claim{
				source: addressOf(fmt.Sprintf("198.51.%d.%d", rapid.IntRange(0, 4).Draw(t, "network"), i)),
				has:    float64(rapid.IntRange(0, 500).Draw(t, "has")),
				usual:  float64(rapid.IntRange(0, 2).Draw(t, "known") * rapid.IntRange(0, 200).Draw(t, "usual")),
				weight: float64(rapid.IntRange(1, 3).Draw(t, "weight")),
			}
			all += claims[i].has
		}
		rest := float64(rapid.IntRange(0, 100).Draw(t, "rest"))
		target := float64(rapid.IntRange(1, 4000).Draw(t, "target"))
		const floor = 1
		d := divide(claims, rest, target, floor, rapid.Bool().Draw(t, "by network"))
		given, needed := rest, rest
		for i, c := range claims {
			if d.keep[i] < min(c.has, c.usual) {
				t.Fatalf("%+v keeps %.2f", c, d.keep[i])
			}
			given += min(c.has, d.keep[i])
			needed += max(min(c.has, c.usual), min(c.has, floor*c.weight))
		}
		if asked := !math.IsInf(d.keep[0], 1); asked && given > max(target, needed)+float64(n)*floor*3+1e-6 {
			t.Fatalf("given out %.1f of %.1f (usual and floors are %.1f)", given, target, needed)
		}
		if rest+all <= target && !math.IsInf(d.share, 1) {
			t.Fatalf("everybody fits, and the share is %.1f", d.share)
		}
	})
}
