package lab

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"ctguard/cmd/ctlab/internal/role"
	"ctguard/cmd/ctlab/internal/round"
	"ctguard/cmd/ctlab/internal/service"
)

// stand is a site, to be measured on.
type stand struct {
	run   *run        // the site, and what ctguard needs to know to be started
	guard *ctguard    // nil: none
	ends  *round.Ends // nil: nobody serves there
}

func newStand(topology string) (*stand, error) {
	st, err := newSite(topology)
	if err != nil {
		return nil, err
	}
	return &stand{run: &run{site: st, sc: Scenario{Topology: topology, Capacity: hugeTable}}}, nil
}

// serve opens both ends of ordinary traffic.
func (s *stand) serve() (err error) {
	v4 := func(as []netip.Addr) (list []netip.Addr) {
		for _, a := range as {
			if a.Is4() {
				list = append(list, a)
			}
		}
		return list
	}
	st := s.run.site
	// New connections go to all of a gateway's servers: behind one address it has only so many ports for each.
	s.ends, err = round.Open(st.clients, st.serving[0], v4(st.clientAddrs), v4(st.near.targets))
	return err
}

// protect starts ctguard, with its files in dir.
func (s *stand) protect(ctx context.Context, binary, dir string) error {
	s.run.dir = dir
	s.guard = newCTGuard("")(Scenario{CTGuard: binary}).(*ctguard)
	if err := s.guard.start(ctx, s.run); err != nil {
		s.guard = nil
		return err
	}
	return nil
}

func (s *stand) close() (err error) {
	if s.guard != nil {
		err = s.guard.stop(s.run)
	}
	if s.ends != nil {
		s.ends.Close()
	}
	s.run.killChildren()
	s.run.site.close()
	return err
}

// hold pins the level and waits until it is there.
func (s *stand) hold(ctx context.Context, level int) error {
	if err := s.guard.operate(ctx, "hold", strconv.Itoa(level), "--for", benchHold, "--reason",
		"ctlab bench-data"); err != nil {
		return err
	}
	return s.guard.await(ctx, s.run, startPatience, func(st agentStatus) bool {
		return st.Mode == "hold" && st.Level == int64(level)
	})
}

// endTrials gives the services on trial what their trials need, traffic, until these are over. A
// service that is still on trial after that has the same rules, and a counter or two more.
func (s *stand) endTrials(ctx context.Context) error {
	for last := role.Now().Add(trialPatience); last.Until() > 0; {
		if !s.guard.status().trials(service.HTTPPort, service.SinkPort, service.UDPPort) {
			return nil
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		for _, kind := range []round.Kind{round.UDP, round.TCP, round.Bulk} {
			if _, err := s.ends.Do(kind, 0, 100*time.Millisecond); err != nil {
				return err
			}
		}
	}
	return nil
}

// trials says whether a service on one of the ports is on trial.
func (st agentStatus) trials(ports ...int) bool {
	for _, sel := range st.Selectors {
		for _, port := range ports {
			name := []string{fmt.Sprintf("tcp/%d", port), fmt.Sprintf("udp/%d", port)}
			if sel.Stage == "trial" && slices.Contains(name, sel.Selector) {
				return true
			}
		}
	}
	return false
}
