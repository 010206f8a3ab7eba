package agent

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"ctguard/agent/survey"
	"ctguard/policy"
)

// surveyPause is how often the agent looks at the host it runs on.
const surveyPause = 5 * time.Second

// facts is what the agent knows of its host.
type facts struct {
	policy.Host
	own    []netip.Addr
	faults []error // what could not be found out
}

// surveyor looks at the host.
type surveyor struct {
	host    *survey.Host
	config  Config
	lacking map[policy.StepName]string      // steps that this kernel can't do
	seen    map[survey.Connection]time.Time // management connections and when each was first seen
}

// loginGrace is how long a management connection must live before its peer counts as an operator:
// anybody can open one, and flood from there, but sshd closes it after LoginGraceTime (120 s by
// default, sshd_config(5)) unless it logs in.
const loginGrace = 150 * time.Second

// operators returns the peers of management connections that have logged in.
func (s *surveyor) operators(now time.Time) ([]netip.Addr, error) {
	peers := s.host.Sessions()
	seen := make(map[survey.Connection]time.Time)
	for _, port := range s.config.Ports {
		connections, err := s.host.Connections(port)
		if err != nil {
			return peers, err
		}
		for _, c := range connections {
			first, known := s.seen[c]
			if !known {
				first = now
			}
			seen[c] = first
			if now.Sub(first) >= loginGrace {
				peers = append(peers, c.Remote.Addr())
			}
		}
	}
	s.seen = seen
	return peers, nil
}

// survey finds out everything about the host. What can't be found out is left empty, which makes
// ctguard do less, and is in faults.
func (s *surveyor) survey() facts {
	var f facts
	note := func(err error) {
		if err != nil {
			f.faults = append(f.faults, err)
		}
	}
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
	s.excepted(&f)
	for _, one := range s.managed(f.Services) {
		if f.Refused[one] == "" {
			f.Refused[one] = "a management port: the host's own limits on new connections stay in force; list it in notrack.services to leave it untracked"
		}
	}
	f.own, err = s.host.Own()
	note(err)
	f.Allow, err = s.allowlist(f.own, operators)
	note(err)
	f.Handshake, err = s.host.Handshake()
	note(err)
	f.Listeners, f.Unproxied, err = s.listeners()
	note(err)
	f.Unfit, f.Room, err = s.unfit()
	note(err)
	return f
}

// excepted refuses selectors that have some of the traffic which is to stay tracked: what a rule matches it
// leaves untracked without exception.
func (s *surveyor) excepted(f *facts) {
	for _, one := range f.Services {
		if i := slices.IndexFunc(s.config.Except, one.Swallows); i >= 0 && f.Refused[one] == "" {
			f.Refused[one] = fmt.Sprintf("notrack.except keeps %s tracked, which is part of it", s.config.Except[i])
		}
	}
}

// listeners returns the TCP ports that synproxy may stand in front of, and why it can't of some of
// them. What can't be found out leaves none.
func (s *surveyor) listeners() ([]policy.Selector, map[policy.Selector]string, error) {
	list := s.config.Proxied
	if len(list) == 0 {
		found, err := s.host.Services()
		if err != nil {
			return nil, nil, err
		}
		list = slices.DeleteFunc(found, func(one policy.Selector) bool { return one.Protocol != policy.TCP })
	}
	unproxied, err := s.host.Unproxied(list)
	if err != nil {
		return nil, nil, err
	}
	return list, unproxied, nil
}

// unfit returns the steps that can't do their work on this host, with the reasons, and how many
// entries the table may grow to. What can't be found out speaks against a step.
func (s *surveyor) unfit() (map[policy.StepName]string, int, error) {
	unfit, err := s.host.Unfit()
	if err != nil {
		unfit = map[policy.StepName]string{policy.ClosedPorts: "what this host does with packets is not known: " + err.Error()}
	}
	maps.Copy(unfit, s.lacking)
	if s.config.Policy.Profile == policy.NATGateway && unfit[policy.ClosedPorts] == "" {
		unfit[policy.ClosedPorts] = "not on a gateway: answers to what it forwards come to its own address"
	}
	room, err2 := s.host.Room(s.config.GrowMemory)
	switch {
	case s.config.Capacity > 0:
		unfit[policy.Grow] = "table.capacity bounds this namespace"
	case err2 != nil:
		unfit[policy.Grow] = err2.Error()
	}
	return unfit, room, err
}

// services returns the candidates for notrack: what the config names with its parts, and what is found for
// "auto".
func (s *surveyor) services() ([]policy.Selector, error) {
	var all []policy.Selector
	for _, text := range s.config.Services {
		if text == "auto" {
			found, err := s.host.Services()
			if err != nil {
				return nil, err
			}
			all = append(all, found...)
			continue
		}
		one, err := policy.ParseSelector(text)
		if err != nil {
			return nil, err
		}
		all = append(all, one)
	}
	parts, err := s.parts(all)
	if err != nil {
		return nil, err
	}
	all = append(all, parts...)
	seen := make(map[policy.Selector]bool)
	return slices.DeleteFunc(all, func(one policy.Selector) bool {
		again := seen[one]
		seen[one] = true
		return again || slices.Contains(s.config.Except, one)
	}), nil
}

// managed returns the services on management ports that the configuration names neither by themselves nor
// with others.
func (s *surveyor) managed(services []policy.Selector) []policy.Selector {
	var list []policy.Selector
	for _, port := range s.config.Ports {
		one := policy.Selector{Protocol: policy.TCP, Port: port}
		if slices.Contains(services, one) && !slices.ContainsFunc(s.config.Services, func(text string) bool {
			named, err := policy.ParseSelector(text)
			everywhere := named == policy.Selector{Protocol: named.Protocol, Port: named.Port, Last: named.Last}
			return err == nil && (named == one || everywhere && named.Swallows(one))
		}) {
			list = append(list, one)
		}
	}
	return list
}

// parts returns the services found here as far as selectors without a port take them in: each is judged by
// itself as well, lest a busy one hide what becomes of the others.
func (s *surveyor) parts(all []policy.Selector) (parts []policy.Selector, err error) {
	var found []policy.Selector
	for _, whole := range all {
		if !whole.Whole() {
			continue
		}
		if found == nil {
			if found, err = s.host.Services(); err != nil {
				return nil, err
			}
		}
		for _, part := range found {
			if whole.Swallows(part) {
				part.Remote, part.Local, part.Device = whole.Remote, whole.Local, whole.Device
				parts = append(parts, part)
			}
		}
	}
	return parts, nil
}

// mostLane bounds the management lane: each selector is a rule.
const mostLane = 64

// lane returns the selectors of the management lane: each management port with each prefix that is
// allowlisted in the config and each operator.
func (s *surveyor) lane(operators []netip.Addr) []policy.Selector {
	remotes := slices.Clone(s.config.Allow)
	for _, addr := range operators {
		remotes = append(remotes, netip.PrefixFrom(addr, addr.BitLen()))
	}
	var lane []policy.Selector
	for _, port := range s.config.Ports {
		for _, remote := range remotes {
			one := policy.Selector{Protocol: policy.TCP, Port: port, Remote: remote}
			if len(lane) < mostLane && !slices.Contains(lane, one) {
				lane = append(lane, one)
			}
		}
	}
	return lane
}

// allowlist returns the configured prefixes, loopback, the host's own addresses, its gateways and
// resolvers and the operators logged in from elsewhere.
func (s *surveyor) allowlist(own, operators []netip.Addr) ([]netip.Prefix, error) {
	list := slices.Clone(s.config.Allow)
	list = append(list, netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128"))
	learnt := slices.Concat(own, s.host.Gateways())
	resolvers, err := s.host.Resolvers()
	if err != nil {
		return list, err
	}
	learnt = append(learnt, resolvers...)
	learnt = append(learnt, operators...)
	for _, addr := range learnt {
		list = append(list, netip.PrefixFrom(addr, addr.BitLen()))
	}
	slices.SortFunc(list, func(a, b netip.Prefix) int {
		if c := a.Addr().Compare(b.Addr()); c != 0 {
			return c
		}
		return a.Bits() - b.Bits()
	})
	return slices.Compact(list), nil
}

// Allowlist returns whom a daemon that started now would spare.
func Allowlist(c Config, root string) ([]netip.Prefix, error) {
	s := &surveyor{host: survey.New(root), config: c}
	own, err := s.host.Own()
	operators, err2 := s.operators(time.Now())
	list, err3 := s.allowlist(own, operators)
	return list, errors.Join(err, err2, err3)
}
