package survey

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"ctguard/policy"
)

// rewrites is what the rules of this namespace do, as far as it needs connections to be tracked.
type rewrites struct {
	nat      []effect
	needs    []effect    // what else needs the entry: marks, helpers, zones and so on
	opens    []effect    // what tells new connections apart by their state
	admits   []effect    // of it, what lets them in
	forwards []forward   // what leads to inside hosts
	sources  []exactRule // what translates the source of forwarded packets
	filters  []filter    // what forwarded packets have to pass
	coming   []filter    // what packets for this host have to pass, where it asks for their connection
	leaving  []filter    // what its own have to, likewise
	stopped  *memory     // what stoppedBy found
	bySYN    string      // the chain in which connections may get in by their SYN alone; empty if there is none
	strict   bool        // this host's own packets may be refused; see filtersOutput
	proxied  string      // which rule hands packets to sockets that they are not addressed to; empty where none does
}

// ruleCache is the newest answer. To read ten thousand rules takes a tenth of a second or more, so it is done only
// where something changed that matters, and then not all the time.
type ruleCache struct {
	rest time.Duration // times what a reading took, before the next one; [rest] but in tests
	sync.Mutex
	calm   atomic.Bool // nothing is untracked and nothing is about to be
	known  bool
	answer rewrites
	took   time.Duration
	ended  time.Time
	watch  *watch
	reads  int // how often rules were read
	failed error
}

// While nothing is about to go untracked, a host whose rules change all the time has them read again only after a
// rest of calmRest times what the reading took, but no longer than mostCalmRest. The answer is then as old as that;
// nothing comes of it, because nothing is untracked. Else the rest is short, so that several questions at once have
// one answer.
const (
	calmRest     = 100
	mostCalmRest = 30 * time.Second
	rest         = 5
	mostRest     = 2 * time.Second
)

// Calm says whether nothing is untracked and nothing is about to be. Then the answers of h about rules may be up to
// half a minute old. Else rules that changed are read again for the next answer.
func (h *Host) Calm(calm bool) { h.read.calm.Store(calm) }

// Close ends the watch over the rules of this namespace.
func (h *Host) Close() error {
	h.read.Lock()
	defer h.read.Unlock()
	if h.read.watch == nil {
		return nil
	}
	w := h.read.watch
	h.read.watch, h.read.known = nil, false
	return w.close()
}

// rewrites looks at the rules of iptables-legacy and nftables, those of iptables-nft included.
func (h *Host) rewrites() (rewrites, error) {
	legacy := h.tablesInUse()
	if file := legacy.file("nat"); file != "" {
		// Nothing more has to be known. A kernel with such tables may have no nftables.
		where := "iptables-legacy has a nat table (" + file + ")"
		return rewrites{nat: []effect{{kind: translates, everything: true, where: where}}}, nil
	}
	found, err := h.nftRewrites()
	if err != nil {
		return rewrites{}, err
	}
	found.needs = slices.Concat(found.needs, legacy.needs())
	// That the kernel knows TPROXY means nothing by itself, but nobody needs the table without rules.
	if legacy.file("mangle") != "" && slices.ContainsFunc([]string{"ip_tables_targets", "ip6_tables_targets"},
		func(file string) bool { return slices.Contains(h.lines(file), "TPROXY") }) {
		found.proxied = "the mangle table of iptables-legacy"
	}
	return found, nil
}

// nftRewrites is rewrites for nftables alone. It reads the rules only where they changed.
func (h *Host) nftRewrites() (rewrites, error) {
	c := &h.read
	c.Lock()
	defer c.Unlock()
	if c.watch == nil {
		c.watch, c.known = newWatch(), false
	}
	if c.watch.changed() {
		c.known = false
	}
	if c.known || c.resting() {
		return c.answer, c.failed
	}
	began := time.Now()
	c.answer, c.failed = c.readAgain()
	c.known, c.ended = c.failed == nil, time.Now()
	c.took = c.ended.Sub(began)
	return c.answer, c.failed
}

// resting says whether it is too soon to read the rules again.
func (c *ruleCache) resting() bool {
	pause := min(c.rest*c.took, mostRest)
	if c.calm.Load() {
		pause = min(calmRest*c.took, mostCalmRest)
	}
	return c.reads > 0 && time.Since(c.ended) < pause
}

// Stale says whether rules of this host changed since they were read, while something is untracked: what is repeated of
// them has to follow at once.
func (h *Host) Stale() bool {
	c := &h.read
	c.Lock()
	defer c.Unlock()
	if c.calm.Load() || c.watch == nil {
		return false
	}
	if c.watch.changed() {
		c.known = false
	}
	return !c.known && !c.resting()
}

// Somebody may change rules while they are read. Then it is soon known whether that matters, and they are read again.
const (
	attempts  = 3
	soonKnown = 10 * time.Millisecond
)

var errChanging = errors.New("look for NAT: the rules changed each time while they were read")

// readAgain reads the rules.
func (c *ruleCache) readAgain() (rewrites, error) {
	for range attempts {
		c.reads++
		rules, err := readRuleset()
		if err != nil {
			return rewrites{}, fmt.Errorf("look for NAT: %w", err)
		}
		c.watch.follow(rules.sets)
		if rules.interrupted {
			time.Sleep(soonKnown)
			if c.watch.changed() {
				continue
			}
		}
		return rules.rewrites(), nil
	}
	return rewrites{}, errChanging
}

// rewrites sorts what rules do by what it means.
func (r *ruleset) rewrites() rewrites {
	found := sorted(r.all())
	found.strict = r.filtersOutput()
	found.forwards, found.sources = r.forwards(), r.stepsAt(natChain, postrouting)
	if len(found.forwards) > 0 {
		found.filters = r.filtersAt(forwarding)
	}
	found.coming = slices.DeleteFunc(r.filtersAt(prerouting, input), filter.blind)
	found.leaving = slices.DeleteFunc(r.filtersAt(output, postrouting), filter.blind)
	found.stopped = &memory{reasons: make(map[policy.Selector]string)}
	return found
}

// memory keeps what was found out about services for as long as the rules are the same: to look through thousands of
// rules for each service takes a millisecond, and each survey asks.
type memory struct {
	sync.Mutex
	reasons map[policy.Selector]string
}

// of returns what is known of s, or finds it out.
func (m *memory) of(s policy.Selector, find func(policy.Selector) string) string {
	if m == nil {
		return find(s) // nothing was read that it could be looked for in
	}
	m.Lock()
	defer m.Unlock()
	reason, known := m.reasons[s]
	if !known {
		if len(m.reasons) >= mostReasons {
			clear(m.reasons)
		}
		reason = find(s)
		m.reasons[s] = reason
	}
	return reason
}

// mostReasons bounds what strangers on this host could make it remember, with a listener after the other.
const mostReasons = 4096

func sorted(all []effect) (found rewrites) {
	written := make(map[kind]bool)
	for _, e := range all {
		written[e.kind] = true
	}
	for _, e := range all {
		switch e.kind {
		case translates:
			found.nat = append(found.nat, e)
		case judgesNew:
			found.opens = append(found.opens, e)
		case admitsNew:
			found.admits = append(found.admits, e)
		case proxies:
			found.proxied = cmp.Or(found.proxied, e.where)
		case bySYN:
			found.bySYN = cmp.Or(found.bySYN, e.where)
		default:
			if by, reads := writers[e.kind]; !reads || written[by] {
				found.needs = append(found.needs, e)
			}
		}
	}
	found.nat, found.needs = distinct(found.nat), distinct(found.needs)
	found.opens, found.admits = distinct(found.opens), distinct(found.admits)
	return found
}

// needOf says why s must stay tracked for something other than a translation; empty if for nothing.
func (r rewrites) needOf(s policy.Selector, multicast bool, routesByMark func() bool) string {
	for _, e := range r.needs {
		if e.kind == offloads || e.kind == refusesNew { // of what is forwarded
			continue
		}
		if (e.everything || e.meets(s, e.hook, multicast)) && (e.kind != marks || routesByMark()) {
			return e.reason()
		}
	}
	return ""
}

// stoppedBy says why s must stay tracked for a filter that lets its packets pass as those of a connection only; empty
// if there is none. A trial would find out as well, and would cost everybody a second.
func (r rewrites) stoppedBy(s policy.Selector) string {
	if s.Group || s.Port == 0 {
		return ""
	}
	first, last := s.Ports()
	asked := flowMatch{protocol: protocolNumber(s.Protocol), ports: []ports{{first, last}}, src: s.Remote, notIn: loopback}
	answer := flowMatch{protocol: asked.protocol, dst: s.Remote, notOut: loopback, srcLocal: true}
	for _, family := range []netip.Prefix{anyIPv4, anyIPv6} {
		if where := stops(r.coming, asked.and(flowMatch{dst: family}), ctNew); where != "" {
			return "untracked packets for it are stopped, and those of connections not, in " + where
		}
		if where := stops(r.leaving, answer.and(flowMatch{dst: family}), ctEstablished); where != "" {
			return "its untracked answers are stopped, and those of connections not, in " + where
		}
	}
	return ""
}

// openedBy says why s must stay tracked for rules that see new connections only; empty if for nothing. No trial
// would find out: what such a rule accepts may be a small part of what comes, as all of IPv6 or VRRP among
// multicast, and what it limits or refuses would get in. The few remote sides of a selector that names them are
// welcome to get past a limit, but they must get in.
func (r rewrites) openedBy(s policy.Selector, multicast bool) string {
	judging := r.opens
	if s.Remote.IsValid() {
		judging = r.admits
	}
	for _, e := range judging {
		if e.meets(s, e.hook, multicast) {
			return e.reason()
		}
	}
	return ""
}
