package conntrack

import (
	"math/rand/v2"
	"net/netip"
	"testing"

	"pgregory.net/rapid"

	"ctguard/policy"
)

func holdingOf(a address) policy.Holding {
	return policy.Holding{Prefix: netip.PrefixFrom(a.netip(), 32)}
}

// What sources counts is what a map counts.
func TestSourcesCountsLikeAMap(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var s sources
		defer s.release()
		s.reset(0)
		want := make(map[origin][numKinds]int)
		n := rapid.IntRange(0, 2000).Draw(t, "entries")
		of, zones := rapid.IntRange(1, 250).Draw(t, "sources"), rapid.IntRange(1, 3).Draw(t, "zones")
		rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0))
		for range n {
			a, k := address{0, v4Mapped | uint64(rng.IntN(of))}, kind(rng.IntN(int(numKinds)))
			zone := uint16(rng.IntN(zones))
			s.add(a, zone, k)
			counts := want[origin{a, zone}]
			counts[k]++
			want[origin{a, zone}] = counts
		}
		s.settle()
		top, rest := s.largest(1<<20, holdingOf)
		if len(top) != len(want) || s.used != len(want) || rest.Entries != 0 || s.short != 0 {
			t.Fatalf("%d listed, %d used, %d in the rest, short by %d; want %d", len(top), s.used, rest.Entries, s.short,
				len(want))
		}
		for i, h := range top {
			counts := want[originOf(h.Source())]
			classes := [policy.NumClasses]int(counts[:policy.NumClasses])
			classes[policy.Assured] += counts[proven]
			if h.Classes != classes || h.Proven != counts[proven] {
				t.Fatalf("%v: %v, of them proven %d; want %v", h.Prefix, h.Classes, h.Proven, counts)
			}
			if i > 0 && h.Entries > top[i-1].Entries {
				t.Fatal("not the largest first")
			}
		}
	})
}

// Of more sources than there is room for, the heavy ones keep their counts but for a known
// shortfall, no entry is lost and the number of sources is about right.
func TestSourcesForget(t *testing.T) {
	const spoofed, heavies, each = 1_000_000, 20, 5_000
	var s sources
	defer s.release()
	s.reset(spoofed)
	entries := make([]uint32, 0, spoofed+heavies*each)
	for i := range spoofed {
		entries = append(entries, uint32(1000+i))
	}
	for i := range heavies * each {
		entries = append(entries, uint32(i%heavies))
	}
	rand.New(rand.NewPCG(1, 2)).Shuffle(len(entries), func(i, j int) { entries[i], entries[j] = entries[j], entries[i] })
	for _, e := range entries {
		s.add(address{0, v4Mapped | uint64(e)}, uint16(e%2), kind(policy.Unreplied)) // each in one of two zones
	}
	s.settle()
	top, rest := s.largest(heavies, holdingOf)
	sum := rest.Entries
	for _, h := range top {
		sum += h.Entries
		a := addressOf(h.Prefix.Addr())
		if h.Entries > each || h.Entries < each-s.short || a.lo > v4Mapped|heavies || uint64(h.Zone) != a.lo%2 {
			t.Errorf("%v has %d entries, short by at most %d", h.Source(), h.Entries, s.short)
		}
	}
	if sum != len(entries) || rest.Classes[policy.Unreplied] != rest.Entries {
		t.Errorf("%d entries counted of %d", sum, len(entries))
	}
	if s.short == 0 || s.short > 10 {
		t.Errorf("short by %d", s.short)
	}
	if n := s.distinct.estimate(); n < spoofed*93/100 || n > spoofed*107/100 {
		t.Errorf("%d sources estimated, %d there", n, spoofed)
	}
	if len(s.slots) > maxSlots {
		t.Errorf("%d slots", len(s.slots))
	}
}

// Whatever is kept and in whatever order it comes, those of the highest rank stay.
func TestRanksKeepTheBest(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		timeouts := rapid.SliceOfN(rapid.Uint32Range(0, 50), 1, 200).Draw(t, "timeouts")
		keep := rapid.IntRange(1, 200).Draw(t, "keep")
		var r ranks
		var gone []rank
		for _, seconds := range timeouts {
			e := entry{timeout: seconds, status: statusSeenReply | statusAssured}
			switch at := rankOf(&e, false); {
			case r.len() < keep:
				r.push(&e, at)
			default:
				if least, _ := r.least(); least < at {
					gone = append(gone, least)
					r.replaceLeast(&e, at)
				} else {
					gone = append(gone, at)
				}
			}
		}
		if r.len() != min(keep, len(timeouts)) || r.len()+len(gone) != len(timeouts) {
			t.Fatalf("%d kept, %d gone, of %d", r.len(), len(gone), len(timeouts))
		}
		for _, g := range gone {
			if least, _ := r.least(); g > least {
				t.Fatalf("%x went and %x stayed", g, least)
			}
		}
	})
}

// Steps are ranks made coarse: they never change the order, and fit the histogram.
func TestSteps(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		draw := func(name string) rank {
			return rank(rapid.Uint64Range(0, uint64(policy.NumClasses)-1).Draw(t,
				name+" class"))<<32 | rank(rapid.Uint32().Draw(t, name))
		}
		a, b := draw("a"), draw("b")
		if a > b {
			a, b = b, a
		}
		if a.step() > b.step() || a.step() < 0 || b.step() >= numSteps {
			t.Fatalf("ranks %x, %x: steps %d, %d", a, b, a.step(), b.step())
		}
	})
}

// A set of prefixes holds what any of its prefixes holds.
func TestPrefixes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		address4 := rapid.Custom(func(t *rapid.T) netip.Addr {
			return netip.AddrFrom4([4]byte{10, 0, rapid.Byte().Draw(t, "c") & 3, rapid.Byte().Draw(t, "d")})
		})
		address6 := rapid.Custom(func(t *rapid.T) netip.Addr {
			return netip.AddrFrom16([16]byte{0x20, 1, 7: rapid.Byte().Draw(t, "h") & 3, 8: rapid.Byte().Draw(t, "i"),
				15: rapid.Byte().Draw(t, "p")})
		})
		anyAddress := rapid.OneOf(address4, address6)
		var prefixes []netip.Prefix
		var m prefixMap
		zones := map[netip.Prefix]uint16{}
		for range rapid.IntRange(0, 12).Draw(t, "prefixes") {
			a := anyAddress.Draw(t, "address")
			p := netip.PrefixFrom(a, rapid.IntRange(0, a.BitLen()).Draw(t, "bits")).Masked()
			if _, known := zones[p]; !known {
				zones[p] = uint16(rapid.IntRange(0, 1).Draw(t, "zone"))
			}
			m.add(policy.Source{Prefix: p, Zone: zones[p]}, int32(p.Bits()))
			prefixes = append(prefixes, p)
		}
		set := newPrefixSet(prefixes)
		for range 20 {
			a, longest := anyAddress.Draw(t, "asked"), [2]int{-1, -1} // by zone
			for _, p := range prefixes {
				if p.Contains(a) {
					longest[zones[p]] = max(longest[zones[p]], p.Bits())
				}
			}
			if got := set.contains(addressOf(a)); got != (max(longest[0], longest[1]) >= 0) {
				t.Fatalf("%v in %v: %v", a, prefixes, got)
			}
			for zone, want := range longest {
				if got, ok := m.find(addressOf(a), uint16(zone)); ok != (want >= 0) || ok && int(got) != want {
					t.Fatalf("%v in %v of zone %d: %d, %v; want %d", a, prefixes, zone, got, ok, want)
				}
			}
		}
	})
}
