package survey

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"ctguard/agent/config"
	"ctguard/policy"
)

// Facts is what is known of a host.
type Facts struct {
	policy.Host
	Own    []netip.Addr   // the host's own addresses
	Local  []netip.Prefix // and what its routing table takes for its own
	Faults []error        // what could not be found out
	// rules may refuse this host's own packets, or nobody knows: what it says needs entries
	FiltersOutput bool
}

// Surveyor finds out what an agent must know of its host, as its configuration wants it. It belongs to one
// goroutine at a time.
type Surveyor struct {
	host    *Host
	config  config.Config
	lacking map[policy.StepName]string // steps that this kernel can't do
	tracked string                     // why no forwarded service may go untracked; empty: some may
	// why none can be put behind synproxy, likewise
	unproxied string
	targets   targets
	seen      map[Connection]time.Time // management connections and when each was first seen
	looked    time.Time                // when they were listed
}

// NewSurveyor returns a surveyor of h. lacking are the steps that this kernel can't do, with the reasons; see
// package capabilities.
func NewSurveyor(h *Host, c config.Config, lacking map[policy.StepName]string) *Surveyor {
	return &Surveyor{host: h, config: c, lacking: lacking}
}

// KeepForwarded has forwarded services stay tracked for a reason; an empty one lets those go that may.
func (s *Surveyor) KeepForwarded(reason string) { s.tracked = reason }

// KeepUnproxied has synproxy leave forwarded services alone for a reason; an empty one lets it take those that it can.
func (s *Surveyor) KeepUnproxied(reason string) { s.unproxied = reason }

// Reconfigure makes another configuration count. Who has logged in has not left because of it.
func (s *Surveyor) Reconfigure(c config.Config) { s.config = c }

// Stale says whether rules of the host changed in a way that matters since the last survey; see [Host.Stale].
func (s *Surveyor) Stale() bool { return s.host.Stale() }

// tooGenerous says that the configured allowlist leaves nobody to be limited.
func (s *Surveyor) tooGenerous() error {
	for _, p := range s.config.Allow {
		if p.Bits() == 0 {
			return fmt.Errorf("allow has %s: nobody there is ever limited, evicted or refused, whatever they do", p)
		}
	}
	return nil
}

// Survey finds out everything about the host. What can't be found out is left empty, which makes
// ctguard do less, and is in Faults.
func (s *Surveyor) Survey() Facts {
	var f Facts
	note := func(err error) {
		told := slices.ContainsFunc(f.Faults, func(other error) bool { return errors.Is(err, other) })
		if err != nil && !told {
			f.Faults = append(f.Faults, err)
		}
	}
	note(s.tooGenerous())
	var err error
	f.Services, err = s.services()
	note(err)
	operators, err := s.operators(time.Now())
	note(err)
	f.Lane = s.lane(operators)
	if f.Refused, err = s.host.Refused(slices.Concat(f.Services, f.Lane)); err != nil {
		note(err)
		f.Services, f.Lane = nil, nil // unknown NAT: nothing goes untracked
	}
	f.FiltersOutput, err = s.host.FiltersOutput()
	f.FiltersOutput = f.FiltersOutput || err != nil
	if f.BySYN, err = s.host.BySYN(); err != nil {
		f.BySYN = "rules that can't be read"
	}
	f.Zones, err = s.host.SetsZones()
	note(err)
	s.excepted(&f)
	forwarded, err := s.forwarded()
	if note(err); err == nil && f.Refused != nil {
		note(s.targets.judge(forwarded, time.Now()))
		f.Services = append(f.Services, s.untrackable(forwarded)...)
		maps.Copy(f.Refused, forwarded.Refused)
	}
	for _, one := range s.managed(f.Services) {
		if f.Refused[one] == "" {
			f.Refused[one] = "a management port: the host's own limits on new connections stay in force; " +
				"list it in notrack.services to leave it untracked"
		}
	}
	s.keepAnswers(&f)
	f.Own, err = s.host.Own()
	note(err)
	f.Local, err = s.host.local()
	note(err)
	f.Inside, err = s.inside()
	note(err)
	f.Allow, err = s.allowlist(f.Own, operators)
	note(err)
	f.Handshake, err = s.host.Handshake()
	note(err)
	f.Listeners, f.Unproxied, err = s.listeners(forwarded)
	note(err)
	f.Unsupported, f.MaxEntries, err = s.unsupported()
	note(err)
	return f
}

// keepAnswers keeps UDP services tracked where rules may refuse what this host sends. A trial would find out, but an
// answer that is refused meanwhile is an error to whoever sends it (EPERM), and some services end of that; TCP sends it
// again.
func (s *Surveyor) keepAnswers(f *Facts) {
	if !f.FiltersOutput {
		return
	}
	for _, one := range f.Services {
		if one.Protocol == policy.UDP && !one.Forwarded() && !s.named(one) && f.Refused[one] == "" {
			f.Refused[one] = "rules may refuse what this host sends, and an untracked answer with it; " +
				"list it in notrack.services to try it"
		}
	}
}

// listeners returns the TCP services that synproxy may stand in front of, and why it can't of some of
// them: ports of this host, and unless the configuration names its ports, services of inside hosts. What can't be found
// out leaves none.
func (s *Surveyor) listeners(forwarded Inside) ([]policy.Selector, map[policy.Selector]string, error) {
	list, many := s.config.Proxied, error(nil)
	if len(list) == 0 {
		found, err := s.host.Services()
		if many = err; err != nil && !errors.Is(err, ErrManyServices) {
			return nil, nil, err
		}
		list = slices.DeleteFunc(found, func(one policy.Selector) bool { return one.Protocol != policy.TCP })
	}
	unproxied, err := s.host.Unproxied(list)
	if err != nil {
		return nil, nil, err
	}
	for _, one := range forwarded.Services {
		if one.Protocol == policy.TCP && len(s.config.Proxied) == 0 {
			list = append(list, one)
		}
	}
	maps.Copy(unproxied, forwarded.Unproxied)
	return list, unproxied, many
}

// unsupported returns the steps that can't do their work on this host, with the reasons, and how many
// entries the table may grow to. What can't be found out speaks against a step.
func (s *Surveyor) unsupported() (map[policy.StepName]string, int, error) {
	unsupported, err := s.host.Unsupported()
	if err != nil {
		unsupported = map[policy.StepName]string{policy.ClosedPorts: "what this host does with packets is not known: " +
			err.Error()}
	}
	maps.Copy(unsupported, s.lacking)
	if s.config.Policy.Profile == policy.NATGateway && unsupported[policy.ClosedPorts] == "" {
		unsupported[policy.ClosedPorts] = "not on a gateway: answers to what it forwards come to its own address"
	}
	room, err2 := s.host.MaxEntries(s.config.GrowMemory)
	switch {
	case s.config.Capacity > 0:
		unsupported[policy.Grow] = "table.capacity bounds this namespace"
	case err2 != nil:
		unsupported[policy.Grow] = err2.Error()
	}
	return unsupported, room, err
}
