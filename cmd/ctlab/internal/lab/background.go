package lab

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"

	"github.com/mdlayher/netlink"
	"github.com/ti-mo/conntrack"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// makers is how many goroutines make entries at the same time.
const makers = 4

// background fills the table with ordinary users' connections: established, assured,
// spread unevenly on many sources. Nobody is behind them, as nobody is behind most
// connections of a moment.
//
// It is done by goroutines of its own: the caller's may be bound to its thread, and would pay for
// each of the many answers of the kernel with two changes of thread.
func (s *site) background(entries, sources int) error {
	flows := s.ordinaryFlows(entries, sources)
	var eg errgroup.Group
	for part := range slices.Chunk(flows, max(1, (len(flows)+makers-1)/makers)) {
		eg.Go(func() error { return s.create(part) })
	}
	return eg.Wait()
}

func (s *site) create(flows []conntrack.Flow) error {
	conn, err := conntrack.Dial(&netlink.Config{NetNS: s.protected.FD()})
	if err != nil {
		return fmt.Errorf("open conntrack: %w", err)
	}
	defer func() { _ = conn.Close() }() // nothing is written by closing
	for _, f := range flows {
		if err := conn.Create(f); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("make a background entry: %w", err)
		}
	}
	return nil
}

// ordinaryFlows makes up the ordinary users' connections. Sources differ by a factor of five: half
// of the entries are spread over all of them, the other half over a quarter.
func (s *site) ordinaryFlows(entries, sources int) []conntrack.Flow {
	const (
		established = 3
		status      = conntrack.StatusConfirmed | conntrack.StatusSeenReply | conntrack.StatusAssured
	)
	rng := rand.New(rand.NewPCG(7, 11))
	froms := addrs(s.backgroundFrom.String(), 1, sources)
	flows := make([]conntrack.Flow, 0, entries)
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
		f.Zone = s.backgroundZone
		f.ProtoInfo.TCP = &conntrack.ProtoInfoTCP{State: established}
		flows = append(flows, f)
	}
	return flows
}

// ordinaryLeft counts the entries of ordinary users that are still in the table, on a goroutine of
// its own as background makes them.
func (s *site) ordinaryLeft() (n int, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		n, err = s.countOrdinary()
	}()
	<-done
	return n, err
}

func (s *site) countOrdinary() (int, error) {
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
