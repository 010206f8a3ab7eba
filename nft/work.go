package nft

import (
	"fmt"
	"time"

	"github.com/google/nftables"

	"ctguard/policy"
)

// Work reads what the rules have counted since the table was made, in packets; it is zero while there
// is no table. A selector's counters start anew when it has been out of the posture, all counters
// when the table was made anew. Of UDP, echo and groups every request counts as new.
func (t *Table) Work() (_ policy.Work, err error) {
	if t.have == nil {
		return policy.Work{}, nil
	}
	defer t.socket.asks(answerWithin)(&err)
	named, err := t.namedCounters()
	if err != nil {
		return policy.Work{}, err
	}
	byService, err := t.serviceCounters()
	if err != nil {
		return policy.Work{}, err
	}
	work := policy.Work{
		InvalidDropped: named[invalidDropped],
		LimitedDropped: named[limitedDropped],
		BlockedDropped: named[blockedDropped],
		ClosedDropped:  named[closedDropped],
		BudgetDropped:  named[budgetDropped],
		ReserveDropped: named[reserveDropped],
		Proxied: policy.Proxied{
			SYNs: named[proxySYNs], Returned: named[proxyReturned], Checked: named[proxyChecked],
			Services: t.proxiedServices(byService, named),
		},
		FreedOpened: named[freedOpened],
		Selectors:   make(map[policy.Selector]policy.SelectorWork, len(t.have.selectors)),
	}
	t.noteNarrow(named[tooLong], time.Now())
	if work.Strays, err = t.readStrays(work.InvalidDropped, time.Now()); err != nil {
		return work, err
	}
	if work.InsideMSS, err = t.said(); err != nil {
		return work, err
	}
	for sel := range t.have.selectors {
		read := func(kind string) uint64 { return named[custom{selector: sel}.counter(kind)] }
		if s, ok := serviceOf(sel); ok {
			key := string(serviceKey(s))
			read = func(kind string) uint64 { return byService[kind][key] }
		}
		w := policy.SelectorWork{
			Requests: read(requests), New: read(opened), Delivered: read(delivered),
			Replies: read(replies), Sent: read(sent), Asked: read(asked),
		}
		if sel.Forwarded() {
			w.Besides, w.Errors, w.ErrorsPassed = read(besides), read(errorsCome), read(errorsPassed)
		}
		if sel.Whole() {
			w.Answers, w.Heard = read(answers), read(heard)
		}
		if !sel.OfTCP() {
			w.New = w.Requests + w.Asked
		}
		work.Selectors[sel] = w
	}
	return work, nil
}

// proxiedServices returns the counters of the services behind synproxy.
func (t *Table) proxiedServices(byService map[string]map[string]uint64, named map[string]uint64,
) map[policy.Selector]policy.ProxiedService {
	services := make(map[policy.Selector]policy.ProxiedService, len(t.have.services[proxied])+len(t.have.inside))
	for s := range t.have.services[proxied] {
		key := serviceKey(s)
		services[policy.Selector{Protocol: s.proto, Port: s.port}] = policy.ProxiedService{
			Completed: byService[proxyCompleted][string(key)], Delivered: byService[proxyDelivered][string(key)]}
	}
	for _, f := range t.have.inside {
		services[f.selector] = policy.ProxiedService{
			Completed: named[f.counter(proxyCompleted)], Delivered: named[f.counter(proxyDelivered)]}
	}
	return services
}

// namedCounters returns the packets of each named counter.
func (t *Table) namedCounters() (map[string]uint64, error) {
	objects, err := t.conn.GetObjects(&nftables.Table{Name: Name, Family: nftables.TableFamilyINet})
	if err != nil {
		return nil, fmt.Errorf("read counters of table inet %s: %w", Name, err)
	}
	packets := make(map[string]uint64, len(objects))
	for _, o := range objects {
		if c, ok := o.(*nftables.CounterObj); ok {
			packets[c.Name] = c.Packets
		}
	}
	return packets, nil
}

// serviceCounters returns the packets of each element of each counting service set, by the element's key.
func (t *Table) serviceCounters() (map[string]map[string]uint64, error) {
	packets := map[string]map[string]uint64{}
	for _, name := range countingSets() {
		if len(t.have.services[name]) == 0 {
			continue
		}
		elements, err := t.elements(name)
		if err != nil {
			return nil, err
		}
		packets[name] = make(map[string]uint64, len(elements))
		for _, e := range elements {
			if e.Counter != nil {
				packets[name][string(e.Key)] = e.Counter.Packets
			}
		}
	}
	return packets, nil
}

// elements reads a set's elements. The library's time for it grows with the square of their number.
func (t *Table) elements(set string) ([]nftables.SetElement, error) {
	table := &nftables.Table{Name: Name, Family: nftables.TableFamilyINet}
	elements, err := t.conn.GetSetElements(&nftables.Set{Table: table, Name: set})
	if err != nil {
		return nil, fmt.Errorf("read set %s of table inet %s: %w", set, Name, err)
	}
	return elements, nil
}
