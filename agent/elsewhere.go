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

// elsewhere returns what counts the conversations of translated services that go to another inside host, or another
// port, than their rules say now. What is over or unanswered is none.
func elsewhere(table *conntrack.Table) func([]policy.Selector) (map[policy.Selector]int, error) {
	return func(services []policy.Selector) (map[policy.Selector]int, error) {
		ctx, cancel := context.WithTimeout(context.Background(), elsewherePatience)
		defer cancel()
		yes := true
		counts := make(map[policy.Selector]int)
		err := table.Entries(ctx, conntrack.EntryFilter{Replied: &yes, Translated: &yes}, func(e conntrack.Entry) bool {
			if slices.Contains([]string{"LAST_ACK", "TIME_WAIT", "CLOSE"}, e.State) {
				return true
			}
			for _, s := range services {
				if asks(s, e) && !leads(s, e) {
					counts[s]++
				}
			}
			return true
		})
		return counts, err
	}
}

// asks reports whether an entry was opened to a translated service.
func asks(s policy.Selector, e conntrack.Entry) bool {
	protocol := map[policy.Protocol]uint8{policy.TCP: unix.IPPROTO_TCP, policy.UDP: unix.IPPROTO_UDP}[s.Protocol]
	first, last := s.Ports()
	port := e.Destination.Port()
	return e.Protocol == protocol && port >= first && port <= last && s.Local.Contains(e.Destination.Addr()) &&
		(!s.Remote.IsValid() || s.Remote.Contains(e.Source.Addr()))
}

// leads reports whether it goes where the service's rule says.
func leads(s policy.Selector, e conntrack.Entry) bool {
	first, _ := s.Ports()
	return e.ReplySource.Addr() == s.Inside.Addr() && e.ReplySource.Port() == s.Inside.Port()+e.Destination.Port()-first
}
