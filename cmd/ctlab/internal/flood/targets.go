package flood

import (
	"math/rand/v2"
	"net/netip"
)

// targets hands out where packets go.
type targets struct {
	each  []netip.AddrPort
	ports int
	net   *tuples // nil: the addresses of each
	rng   *rand.Rand
	next  int
}

func newTargets(s Spec) *targets {
	t := &targets{each: s.Targets, ports: max(1, s.TargetPorts), rng: rand.New(rand.NewPCG(3, 4))}
	if s.TargetNet.IsValid() {
		t.net = newTuples(s.TargetNet, 0, 0)
	}
	return t
}

// take returns the next target: each in turn, with a random one of its ports.
func (t *targets) take() (netip.Addr, uint16) {
	at := t.each[t.next%len(t.each)]
	t.next++
	addr, port := at.Addr(), at.Port()
	if t.ports > 1 {
		port += uint16(t.rng.IntN(t.ports))
	}
	if t.net != nil {
		addr = t.net.random()
	}
	return addr, port
}
