package agent

import (
	"context"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"ctguard/agent/conntrack"
	"ctguard/policy"
)

// elsewherePatience is how long a look for such connections may take, of a table with millions of entries.
const elsewherePatience = 10 * time.Second

// elsewhere returns what counts the conversations of a translated service that go to another inside host, or another
// port, than its rule says now. What is over or unanswered is none.
func elsewhere(table *conntrack.Table) func(policy.Selector) (int, error) {
	return func(s policy.Selector) (n int, err error) {
		ctx, cancel := context.WithTimeout(context.Background(), elsewherePatience)
		defer cancel()
		yes := true
		filter := conntrack.EntryFilter{Protocol: unix.IPPROTO_TCP, Source: s.Remote, Destination: s.Local,
			Replied: &yes, Translated: &yes}
		if s.Protocol == policy.UDP {
			filter.Protocol = unix.IPPROTO_UDP
		}
		first, last := s.Ports()
		err = table.Entries(ctx, filter, func(e conntrack.Entry) bool {
			port := e.Destination.Port()
			goes := s.Inside.Addr() == e.ReplySource.Addr() && s.Inside.Port()+port-first == e.ReplySource.Port()
			over := slices.Contains([]string{"LAST_ACK", "TIME_WAIT", "CLOSE"}, e.State)
			if port >= first && port <= last && !goes && !over {
				n++
			}
			return true
		})
		return n, err
	}
}
