package lab

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"

	"github.com/mdlayher/netlink"
	"github.com/ti-mo/conntrack"
	"golang.org/x/sys/unix"
)

// background fills the table with ordinary users' connections: established, assured,
// spread unevenly on many sources. Nobody is behind them, as nobody is behind most
// connections of a moment.
//
// Sources differ by a factor of five: half of the entries are spread over all of them, the
// other half over a quarter.
func (s *site) background(entries, sources int) error {
	if entries == 0 {
		return nil
	}
	conn, err := conntrack.Dial(&netlink.Config{NetNS: s.protected.FD()})
	if err != nil {
		return fmt.Errorf("open conntrack: %w", err)
	}
	defer func() { _ = conn.Close() }() // nothing is written by closing
	rng := rand.New(rand.NewPCG(7, 11))
	froms := make([]netip.Addr, sources)
	a := s.backgroundFrom.Addr()
	for i := range froms {
		a = a.Next()
		froms[i] = a
	}
	const (
		established = 3
		status      = conntrack.StatusConfirmed | conntrack.StatusSeenReply | conntrack.StatusAssured
	)
	for i := range entries {
		// Every source has some, a few have several times as many.
		from := froms[i%sources]
		if i >= entries/2 {
			from = froms[rng.IntN(max(1, sources/4))]
		}
		to := s.backgroundTo[i%len(s.backgroundTo)]
		timeout := uint32(7200 + rng.IntN(400_000))
		f := conntrack.NewFlow(6, status, from, to.Addr(), uint16(2000+i/sources*7+rng.IntN(7)), to.Port(), timeout, 0)
		if s.masquerade.IsValid() {
			f.TupleReply.IP.DestinationAddress = s.masquerade
			f.TupleReply.Proto.DestinationPort = uint16(1024 + i%64000)
		}
		f.ProtoInfo.TCP = &conntrack.ProtoInfoTCP{State: established}
		if err := conn.Create(f); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("make background entry %d: %w", i, err)
		}
	}
	return nil
}

// ordinaryLeft counts the entries of ordinary users that are still in the table.
func (s *site) ordinaryLeft() (int, error) {
	conn, err := conntrack.Dial(&netlink.Config{NetNS: s.protected.FD()})
	if err != nil {
		return 0, fmt.Errorf("open conntrack: %w", err)
	}
	defer func() { _ = conn.Close() }() // read only
	flows, err := conn.Dump(nil)
	if err != nil {
		return 0, fmt.Errorf("dump the table: %w", err)
	}
	n := 0
	for i := range flows {
		if s.backgroundFrom.Contains(flows[i].TupleOrig.IP.SourceAddress) {
			n++
		}
	}
	return n, nil
}
