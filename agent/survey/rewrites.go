package survey

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"ctguard/policy"
)

// rewrites is what the rules of this namespace do, as far as it needs connections to be tracked.
type rewrites struct {
	nat     []effect
	needs   []effect // what else needs the entry: marks, helpers, zones and so on
	proxied string   // which rule hands packets to sockets that they are not addressed to; empty where none does
}

// ruleCache is the newest answer. To read ten thousand rules takes a tenth of a second or more, so it is done only
// where something changed that matters, and then not all the time.
type ruleCache struct {
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
// rest of this many times what the reading took, but no longer than mostRest. The answer is then as old as that;
// nothing comes of it, because nothing is untracked.
const (
	restFactor = 100
	mostRest   = 30 * time.Second
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
	if file := h.legacy("nat"); file != "" {
		// Nothing more has to be known. A kernel with such tables may have no nftables.
		where := "iptables-legacy has a nat table (" + file + ")"
		return rewrites{nat: []effect{{kind: translates, everything: true, where: where}}}, nil
	}
	found, err := h.nftRewrites()
	if err != nil {
		return rewrites{}, err
	}
	// That the kernel knows TPROXY means nothing by itself, but nobody needs the table without rules.
	if h.legacy("mangle") != "" && (h.lists("ip_tables_targets", "TPROXY") || h.lists("ip6_tables_targets", "TPROXY")) {
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
	resting := c.calm.Load() && c.failed == nil && time.Since(c.ended) < min(restFactor*c.took, mostRest)
	if c.reads > 0 && (c.known || resting) {
		return c.answer, c.failed
	}
	began := time.Now()
	c.answer, c.failed = rewrites{}, nil
	rules, err := readRuleset()
	c.reads++
	if err != nil {
		c.failed = fmt.Errorf("look for NAT: %w", err)
		return c.answer, c.failed
	}
	c.answer = rules.rewrites()
	c.watch.follow(rules.sets)
	c.known, c.ended = true, time.Now()
	c.took = c.ended.Sub(began)
	return c.answer, nil
}

// rewrites sorts what rules do by what it means.
func (r *ruleset) rewrites() (found rewrites) {
	all := r.all()
	written := make(map[kind]bool)
	for _, e := range all {
		written[e.kind] = true
	}
	for _, e := range all {
		switch e.kind {
		case translates:
			found.nat = append(found.nat, e)
		case proxies:
			if found.proxied == "" {
				found.proxied = e.where
			}
		default:
			if by, reads := writers[e.kind]; !reads || written[by] {
				found.needs = append(found.needs, e)
			}
		}
	}
	found.nat, found.needs = distinct(found.nat), distinct(found.needs)
	return found
}

// needOf says why s must stay tracked for something other than a translation; empty if for nothing.
func (r rewrites) needOf(s policy.Selector, multicast bool, routesByMark func() bool) string {
	for _, e := range r.needs {
		if e.meets(s, e.hook, multicast) && (e.kind != marks || routesByMark()) {
			return e.reason()
		}
	}
	return ""
}

// legacy names the file that says iptables-legacy has the table in this namespace, or nothing. Such
// rules are invisible to nftables, and the kernel has no other way to list them than as a whole.
func (h *Host) legacy(table string) string {
	for _, file := range []string{"ip_tables_names", "ip6_tables_names"} {
		if h.lists(file, table) {
			return file
		}
	}
	return ""
}

// lists says whether a file of /proc/net has a line; a file that isn't there has none.
func (h *Host) lists(file, line string) bool {
	text, err := os.ReadFile(h.net(file))
	return err == nil && strings.Contains("\n"+string(text), "\n"+line+"\n")
}
