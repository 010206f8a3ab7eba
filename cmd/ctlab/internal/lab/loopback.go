package lab

import "net/netip"

// proxied is how many connections a second a local proxy opens to what it stands in front of.
const proxied = 3000

// buildLoopback makes the server again, with a proxy that opens a connection by way of lo for each of its own from the
// attack's begin on: each leaves an entry in TIME_WAIT.
func buildLoopback(s *site) error {
	if err := buildServer(s); err != nil {
		return err
	}
	s.parties = []party{{name: "proxy", in: s.protected, from: addrs("127.0.0.0/8", 1, 10),
		to: netip.MustParseAddr("127.0.0.1"), http: proxied, accepted: 99.5, late: true}}
	return nil
}
