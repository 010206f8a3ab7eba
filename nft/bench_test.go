package nft

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"ctguard/policy"
)

// many makes n limits of single IPv4 addresses and IPv6 networks, half of each, from documentation's
// prefixes and the range for benchmarks.
func many(n int, until time.Time) []policy.Limit {
	list := make([]policy.Limit, n)
	for i := range list {
		half := i / 2
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 18 + byte(half>>16), byte(half >> 8), byte(half)}), 32)
		if i%2 == 1 {
			p = netip.PrefixFrom(netip.AddrFrom16([16]byte{
				0x20, 0x01, 0x0d, 0xb8, 0, byte(half >> 16), byte(half >> 8), byte(half),
			}), 64)
		}
		list[i] = policy.Limit{Prefix: p, Until: until}
	}
	return list
}

func BenchmarkApply(b *testing.B) {
	inNewNetNS(b)
	for _, n := range []int{100, 10000} {
		with := func(until time.Time, extra ...policy.Limit) Desired {
			return Desired{Posture: policy.Posture{LimitRate: 10, LimitBurst: 20, Limits: append(many(n, until), extra...)}}
		}
		hour, day := with(now.Add(time.Hour)), with(now.Add(24*time.Hour))
		more := with(now.Add(time.Hour), block("203.0.113.1/32"))
		for _, bench := range []struct {
			name  string
			cycle []Desired
		}{
			{"make and remove", []Desired{hour, {}}},
			{"nothing changes", []Desired{hour}},
			{"one comes or goes", []Desired{hour, more}},
			{"every end moves", []Desired{hour, day}},
		} {
			b.Run(fmt.Sprintf("%d limits, %s", n, bench.name), func(b *testing.B) {
				inNewNetNS(b)
				table := open(b)
				apply(b, table, bench.cycle[len(bench.cycle)-1])
				for i := 0; b.Loop(); i++ {
					apply(b, table, bench.cycle[i%len(bench.cycle)])
				}
			})
		}
	}
}

func BenchmarkRead(b *testing.B) {
	inNewNetNS(b)
	var services []string
	for port := range 50 {
		services = append(services, fmt.Sprintf("tcp/%d", 1000+port))
	}
	services = append(services, "echo", "multicast", "tcp/22 with 192.0.2.0/24")
	table := open(b)
	d := untrack(services...)
	d.Posture.Limits = many(10000, now.Add(time.Hour))
	d.Posture.DropInvalid = true
	apply(b, table, d)
	b.Run("Work, 53 selectors", func(b *testing.B) {
		for b.Loop() {
			if _, err := table.Work(); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("Intact, nobody changed anything", func(b *testing.B) {
		for b.Loop() {
			intact(b, table, true)
		}
	})
	b.Run("Intact, somebody did", func(b *testing.B) {
		for b.Loop() {
			table.checked = 0
			intact(b, table, true)
		}
	})
}
