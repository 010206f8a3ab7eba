package flood

import (
	"math/rand/v2"
	"net/netip"
)

// targets hands out where packets go.
type targets struct {
	each  []netip.AddrPort
	ports int
	rng   *rand.Rand
	next  int
}

func newTargets(s Spec) *targets {
	return &targets{each: s.Targets, ports: max(1, s.TargetPorts), rng: rand.New(rand.NewPCG(3, 4))}
}

// take returns the next target: each in turn, with a random one of its ports.
func (t *targets) take() (netip.Addr, uint16) {
	at := t.each[t.next%len(t.each)]
	t.next++
	return at.Addr(), at.Port() + uint16(t.rng.IntN(t.ports))
}
