package survey

import (
	"errors"
	"net/netip"
	"slices"
	"time"

	"ctguard/agent/config"
	"ctguard/agent/state"
)

// loginGrace is how long a management connection must live before its peer counts as an operator:
// anybody can open one, and flood from there, but sshd closes it after LoginGraceTime (120 s by
// default, sshd_config(5)) unless it logs in.
const loginGrace = 150 * time.Second

// operators returns the peers of management connections that have logged in.
func (s *Surveyor) operators(now time.Time) ([]netip.Addr, error) {
	peers := s.host.Sessions()
	seen := make(map[Connection]time.Time)
	for _, port := range s.config.Ports {
		connections, err := s.host.managing(port, s.seen)
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

// Logins returns the management connections that have logged in, with when each was first seen, in a stable order.
func (s *Surveyor) Logins(now time.Time) []state.Login {
	var list []state.Login
	for c, first := range s.seen {
		if now.Sub(first) >= loginGrace {
			list = append(list, state.Login{Local: c.Local, Remote: c.Remote, Since: first})
		}
	}
	slices.SortFunc(list, func(a, b state.Login) int { return a.Remote.Compare(b.Remote) })
	return list
}

// RecallLogins takes what an earlier process knew: a connection that is still there needs not wait again.
func (s *Surveyor) RecallLogins(logins []state.Login) {
	s.seen = make(map[Connection]time.Time)
	for _, l := range logins {
		s.seen[Connection{l.Local, l.Remote}] = l.Since
	}
}

// allowlist returns the configured prefixes, loopback, the host's own addresses, its gateways and
// resolvers and the operators logged in from elsewhere.
func (s *Surveyor) allowlist(own, operators []netip.Addr) ([]netip.Prefix, error) {
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
	slices.SortFunc(list, netip.Prefix.Compare)
	return slices.Compact(list), nil
}

// Allowlist returns whom a daemon that started now would spare.
func Allowlist(c config.Config, root string) ([]netip.Prefix, error) {
	s := NewSurveyor(New(root), c, nil)
	own, err := s.host.Own()
	operators, err2 := s.operators(time.Now())
	list, err3 := s.allowlist(own, operators)
	return list, errors.Join(err, err2, err3)
}
