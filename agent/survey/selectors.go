package survey

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"ctguard/policy"
)

// forwarded returns the services of inside hosts, and why some must stay tracked or can't be put behind synproxy. What
// is kept tracked of this host's own is kept tracked of theirs.
func (s *Surveyor) forwarded() (Inside, error) {
	found, err := s.host.Forwarded()
	for _, one := range found.Services {
		if s.tracked != "" {
			found.Refused[one] = s.tracked
		}
		if s.unproxied != "" && one.Protocol == policy.TCP {
			found.Unproxied[one] = s.unproxied
		}
	}
	return found, err
}

// untrackable returns those of the services of inside hosts that may be tried, if the configuration asks for what is
// found here.
func (s *Surveyor) untrackable(found Inside) []policy.Selector {
	if !slices.Contains(s.config.Services, "auto") {
		return nil
	}
	return slices.DeleteFunc(slices.Clone(found.Services), func(one policy.Selector) bool {
		return slices.ContainsFunc(s.config.Except, func(except policy.Selector) bool {
			return except == one || except.Protocol == policy.All || except.Protocol == one.Protocol && !except.Forwarded() &&
				(except.Port == one.Port || except.Port == one.Inside.Port() || except.Whole() || except.Last != 0)
		})
	})
}

// services returns the candidates for notrack: what the config names with its parts, and what is found for
// "auto". With [ErrManyServices] these are some of them.
func (s *Surveyor) services() ([]policy.Selector, error) {
	var all []policy.Selector
	var many error
	for _, text := range s.config.Services {
		if text == "auto" {
			found, err := s.host.Services()
			if err != nil && !errors.Is(err, ErrManyServices) {
				return nil, err
			}
			all, many = append(all, found...), err
			continue
		}
		one, err := policy.ParseSelector(text)
		if err != nil {
			return nil, err
		}
		all = append(all, one)
	}
	parts, err := s.parts(all)
	if errors.Is(err, ErrManyServices) {
		many = err
	} else if err != nil {
		return nil, err
	}
	all = append(all, parts...)
	seen := make(map[policy.Selector]bool)
	return slices.DeleteFunc(all, func(one policy.Selector) bool {
		again := seen[one]
		seen[one] = true
		return again || slices.Contains(s.config.Except, one)
	}), many
}

// managed returns the services on management ports that the configuration names neither by themselves nor
// with others.
func (s *Surveyor) managed(services []policy.Selector) []policy.Selector {
	var list []policy.Selector
	for _, port := range s.config.Ports {
		one := policy.Selector{Protocol: policy.TCP, Port: port}
		if slices.Contains(services, one) && !s.named(one) {
			list = append(list, one)
		}
	}
	return list
}

// named says whether the configuration names a service: by itself or in a range of ports.
func (s *Surveyor) named(one policy.Selector) bool {
	return slices.ContainsFunc(s.config.Services, func(text string) bool {
		named, err := policy.ParseSelector(text)
		everywhere := named == policy.Selector{Protocol: named.Protocol, Port: named.Port, Last: named.Last}
		return err == nil && (named == one || everywhere && named.PartlyCovers(one))
	})
}

// parts returns the services found here as far as selectors without a port take them in: each is judged by
// itself as well, lest a busy one hide what becomes of the others.
func (s *Surveyor) parts(all []policy.Selector) (parts []policy.Selector, err error) {
	var found []policy.Selector
	var many error
	for _, whole := range all {
		if !whole.Whole() {
			continue
		}
		if found == nil {
			if found, many = s.host.Services(); many != nil && !errors.Is(many, ErrManyServices) {
				return nil, many
			}
		}
		for _, part := range found {
			if whole.PartlyCovers(part) {
				part.Remote, part.Local, part.Device = whole.Remote, whole.Local, whole.Device
				parts = append(parts, part)
			}
		}
	}
	return parts, many
}

// mostLane bounds the management lane: each selector is a rule.
const mostLane = 64

// lane returns the selectors of the management lane: each management port with each prefix that is
// allowlisted in the config and each operator.
func (s *Surveyor) lane(operators []netip.Addr) []policy.Selector {
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

// excepted refuses selectors that have some of the traffic which is to stay tracked: what a rule matches it
// leaves untracked without exception.
func (s *Surveyor) excepted(f *Facts) {
	for _, one := range f.Services {
		if i := slices.IndexFunc(s.config.Except, one.PartlyCovers); i >= 0 && f.Refused[one] == "" {
			f.Refused[one] = fmt.Sprintf("notrack.except keeps %s tracked, which is part of it", s.config.Except[i])
		}
	}
}
