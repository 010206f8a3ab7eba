package agent

import (
	"errors"
	"net/netip"
	"slices"
	"time"

	"ctguard/agent/host"
	"ctguard/policy"
)

// surveyPause is how often the agent looks at the host it runs on.
const surveyPause = 5 * time.Second

// facts is what the agent knows of its host.
type facts struct {
	services []policy.Selector
	lane     []policy.Selector // management ports with configured allowlist and operators
	refused  map[policy.Selector]string
	own      []netip.Addr
	allow    []netip.Prefix // configured and learnt
	faults   []error        // what could not be found out
}

// surveyor looks at the host.
type surveyor struct {
	host   *host.Host
	config Config
	seen   map[host.Connection]time.Time // management connections and when each was first seen
}

// loginGrace is how long a management connection must live before its peer counts as an operator:
// anybody can open one, and flood from there, but sshd closes it after LoginGraceTime (120 s by
// default, sshd_config(5)) unless it logs in.
const loginGrace = 150 * time.Second

// operators returns the peers of management connections that have logged in.
func (s *surveyor) operators(now time.Time) ([]netip.Addr, error) {
	peers := s.host.Sessions()
	seen := make(map[host.Connection]time.Time)
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
	f.services, err = s.services()
	note(err)
	operators, err := s.operators(time.Now())
	note(err)
	f.lane = s.lane(operators)
	if f.refused, err = s.host.Refused(slices.Concat(f.services, f.lane)); err != nil {
		note(err)
		f.services, f.lane = nil, nil // unknown NAT: nothing goes untracked
	}
	f.own, err = s.host.Own()
	note(err)
	f.allow, err = s.allowlist(f.own, operators)
	note(err)
	return f
}

// services returns the candidates for notrack: what the config names, and what is found for "auto".
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
	seen := make(map[policy.Selector]bool)
	return slices.DeleteFunc(all, func(one policy.Selector) bool {
		again := seen[one]
		seen[one] = true
		return again || slices.Contains(s.config.Except, one)
	}), nil
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
	s := &surveyor{host: host.New(root), config: c}
	own, err := s.host.Own()
	operators, err2 := s.operators(time.Now())
	list, err3 := s.allowlist(own, operators)
	return list, errors.Join(err, err2, err3)
}
