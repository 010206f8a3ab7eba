package lab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"ctguard/cmd/ctlab/internal/load"
	"ctguard/cmd/ctlab/internal/role"
	"ctguard/cmd/ctlab/internal/service"
)

// stand is a site with its services, to be measured on.
type stand struct {
	run   *run     // the site, and what ctguard needs to know to be started
	guard *ctguard // nil: none
}

func newStand(topology string) (*stand, error) {
	st, err := newSite(topology)
	if err != nil {
		return nil, err
	}
	s := &stand{run: &run{site: st, sc: Scenario{Topology: topology, Capacity: hugeTable}}}
	if s.run.services, err = st.serve(); err != nil {
		return nil, errors.Join(err, s.close())
	}
	return s, nil
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
		for _, kind := range []load.Kind{load.UDP, load.TCP, load.Bulk} {
			if _, err := s.load(ctx, kind, 100*time.Millisecond); err != nil {
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

// load runs one kind of traffic from the clients to the services.
func (s *stand) load(ctx context.Context, kind load.Kind, span time.Duration) (res load.Result, err error) {
	spec := load.Spec{Kind: kind, Workers: benchWorkers, Warm: benchWarm, For: span}
	port := map[load.Kind]uint16{load.UDP: service.UDPPort, load.TCP: service.HTTPPort, load.Bulk: service.SinkPort}[kind]
	for _, a := range s.run.site.clientAddrs {
		if a.Is4() {
			spec.Sources = append(spec.Sources, a)
		}
	}
	for _, a := range s.run.site.near.targets {
		// New connections go to all of a gateway's servers: behind one address it has only so many
		// ports for each. The UDP echo answers from the first address alone.
		if a.Is4() && (kind == load.TCP || len(spec.Targets) == 0) {
			spec.Targets = append(spec.Targets, netip.AddrPortFrom(a, port))
		}
	}
	p, err := role.Spawn(s.run.site.clients, load.Role, spec)
	if err != nil {
		return res, err
	}
	defer p.Kill()
	at := role.Now().Add(5 * time.Millisecond)
	if err := p.Start(at); err != nil {
		return res, err
	}
	if err := role.WaitUntil(ctx, at.Add(spec.Warm+spec.For)); err != nil {
		return res, err
	}
	return res, p.Stop(&res)
}
