package flood

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
)

// firstPort is where source ports begin: below it lie ports that rulesets treat apart.
const firstPort = 1024

// tuples hands out source addresses and ports, never the same pair twice until
// all are used.
type tuples struct {
	base  netip.Addr
	bits  int
	count int
	ports uint64
	rng   *rand.Rand
	next  uint64
}

func newTuples(p netip.Prefix, count, ports int) *tuples {
	if ports == 0 {
		ports = 1<<16 - firstPort
	}
	return &tuples{
		base: p.Masked().Addr(), bits: p.Bits(), count: count, ports: uint64(ports),
		rng: rand.New(rand.NewPCG(0x6374, 0x6c6162)), // the same flood every time
	}
}

// take returns the next source.
func (t *tuples) take() (netip.Addr, uint16) {
	if t.count == 0 {
		return t.random(), uint16(firstPort + t.rng.IntN(1<<16-firstPort))
	}
	i := t.next
	t.next++
	port := firstPort + (i/uint64(t.count))%t.ports
	return t.nth(i % uint64(t.count)), uint16(port)
}

// nth is the i-th address above the base; for IPv6, the first host of the i-th /64.
func (t *tuples) nth(i uint64) netip.Addr {
	if t.base.Is4() {
		b := t.base.As4()
		binary.BigEndian.PutUint32(b[:], binary.BigEndian.Uint32(b[:])+uint32(i)+1)
		return netip.AddrFrom4(b)
	}
	b := t.base.As16()
	binary.BigEndian.PutUint64(b[:8], binary.BigEndian.Uint64(b[:8])+i+1)
	b[15] = 1
	return netip.AddrFrom16(b)
}

func (t *tuples) random() netip.Addr {
	if t.base.Is4() {
		b := t.base.As4()
		mask := uint32(1)<<(32-t.bits) - 1
		binary.BigEndian.PutUint32(b[:], binary.BigEndian.Uint32(b[:])|t.rng.Uint32()&mask)
		return netip.AddrFrom4(b)
	}
	b := t.base.As16()
	mask := uint64(1)<<max(0, 64-t.bits) - 1
	binary.BigEndian.PutUint64(b[:8], binary.BigEndian.Uint64(b[:8])|t.rng.Uint64()&mask)
	binary.BigEndian.PutUint64(b[8:], t.rng.Uint64())
	return netip.AddrFrom16(b)
}
