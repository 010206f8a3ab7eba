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

// loginLook is how often management connections are looked for while nothing is engaged or about to be. For that the
// kernel walks over the hash of all connections, full or empty: 16 ms where it has half a million buckets. Who comes or
// leaves meanwhile is noticed so much later, against the time that a login takes to count.
const loginLook = 30 * time.Second

// operators returns the peers of management connections that have logged in.
func (s *Surveyor) operators(now time.Time) ([]netip.Addr, error) {
	peers := s.host.Sessions()
	if err := s.look(now); err != nil {
		return peers, err
	}
	for c, first := range s.seen {
		if now.Sub(first) >= loginGrace {
			peers = append(peers, c.Remote.Addr())
		}
	}
	slices.SortFunc(peers, netip.Addr.Compare)
	return peers, nil
}

// look brings what is known of management connections up to date, unless it is not worth it yet.
func (s *Surveyor) look(now time.Time) error {
	if s.host.read.calm.Load() && now.Sub(s.looked) < loginLook {
		return nil
	}
	seen := make(map[Connection]time.Time)
	for _, port := range s.config.Ports {
		connections, err := s.host.managing(port, s.seen)
		if err != nil {
			return err
		}
		for _, c := range connections {
			first, known := s.seen[c]
			if !known {
				first = now
			}
			seen[c] = first
		}
	}
	s.seen, s.looked = seen, now
	return nil
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
