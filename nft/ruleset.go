package nft

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/google/nftables"

	"ctguard/policy"
)

// ruleset is everything the table holds, as a value: what [Render] prints and [Table.Apply] compares.
type ruleset struct {
	counters  []string                         // named counters, sorted
	addresses map[string][]element             // elements of the address sets, by set name
	services  map[string]map[service]struct{}  // elements of the service sets, by set name
	ports     map[string]map[uint16]struct{}   // elements of the port sets, by set name
	chains    []chain                          // in the order in which they are made
	selectors map[policy.Selector]policy.Stage // what the counters are read back for
	greedy    map[greedySet][]greedyElement    // of limits that are not on whole sources; a set without any is not there
	inside    []proxiedInside                  // forwarded services behind synproxy
	learn     []policy.Selector                // forwarded services whose inside host's MSS is learnt
	scopes    []scope                          // what has limits, or had
	rate      string                           // what the meters' elements carry; they are emptied when it changes
}

// addressSet is a set of sources of one family.
type addressSet struct {
	name string
	v6   bool
	kind addressKind
	of   scope
}

// addressKind is what the elements of an address set are.
type addressKind uint8

const (
	permanent   addressKind = iota // prefixes without an end
	ending                         // prefixes with an end
	directing                      // prefixes with an end, and the chain to go to
	metering                       // sources that the kernel itself adds, each with its rate
	remembering                    // addresses that the kernel itself adds
)

// addressType is the type of a family's addresses.
func addressType(v6 bool) nftables.SetDatatype {
	if v6 {
		return nftables.TypeIP6Addr
	}
	return nftables.TypeIPAddr
}

// bits returns the length of the set's addresses.
func (s addressSet) bits() int {
	if s.v6 {
		return 128
	}
	return 32
}

// any returns an address of the set's family.
func (s addressSet) any() netip.Addr {
	if s.v6 {
		return netip.IPv6Unspecified()
	}
	return netip.IPv4Unspecified()
}

// bothFamilies returns a set for each family.
func bothFamilies(name string, kind addressKind) [2]addressSet {
	return [2]addressSet{{name: name + "4", kind: kind}, {name: name + "6", v6: true, kind: kind}}
}

// The address sets, IPv4 first.
var (
	allow   = bothFamilies("allow", permanent)
	blocked = bothFamilies("blocked", ending)
	limited = bothFamilies("limited", directing)
	butTCP  = bothFamilies("limited_but_tcp", directing) // likewise, but their TCP goes on: see [policy.Limit]
	meters  = bothFamilies("meter", metering)
)

// addressSets lists the address sets that every table has, in the order in which they are made.
func addressSets() []addressSet {
	return slices.Concat(allow[:], blocked[:], limited[:], butTCP[:], meters[:], narrow[:])
}

// A meter holds one element for each limited prefix that was active within meterTimeout. It is the only
// set that the kernel itself adds to. The size is twice the most limits that a posture may have
// (evict.max_limited), and the rules fail closed if it is reached all the same.
const meterTimeout = time.Minute

var meterSize = uint32(1 << 17) // a variable for the test of what happens when it is reached

// service is a protocol and one of this host's ports.
type service struct {
	proto policy.Protocol
	port  uint16
}

// The service sets. All but the last two count packets for each element.
const (
	requests       = "requests"
	opened         = "opened"
	delivered      = "delivered"
	replies        = "replies"
	sent           = "sent"
	asked          = "asked"
	proxyCompleted = "proxy_completed"
	proxyDelivered = "proxy_delivered"
	untracked      = "untracked"
	proxied        = "proxied"
)

// portSet is a set of ports of one protocol. The kernel keeps it as a bitmap, the cheapest of all lookups.
type portSet struct {
	name  string
	proto policy.Protocol
}

// The plain services that are untracked, by how far they are: what rules need to know of them between looks.
var (
	freed   = [2]portSet{{"freed_tcp", policy.TCP}, {"freed_udp", policy.UDP}}
	onTrial = [2]portSet{{"trial_tcp", policy.TCP}, {"trial_udp", policy.UDP}}
)

// portSets lists them in the order in which they are made.
func portSets() []portSet { return slices.Concat(freed[:], onTrial[:]) }

// What is counted besides of selectors without a port: answers to what this host asks.
const (
	answers = "answers"
	heard   = "heard"
)

// serviceSets lists the service sets in the order in which they are made.
func serviceSets() []string {
	return append(countingSets(), untracked, proxied)
}

// countingSets lists those that count packets for each element.
func countingSets() []string { return append(trialSets(), asked, proxyCompleted, proxyDelivered) }

// trialSets lists those that follow untracked services.
func trialSets() []string { return []string{requests, opened, delivered, replies, sent} }

// The counters that every table has.
const (
	blockedDropped = "blocked_dropped"
	invalidDropped = "invalid_dropped"
	limitedDropped = "limited_dropped"
	closedDropped  = "closed_dropped"
	budgetDropped  = "budget_dropped"
	reserveDropped = "reserve_dropped"
	proxySYNs      = "proxy_syns"
	proxyReturned  = "proxy_returned"
	proxyChecked   = "proxy_checked"
	freedOpened    = "freed_opened"
	tooLong        = "too_long"
)

// namedCounters lists them.
func namedCounters() []string {
	return []string{
		blockedDropped, invalidDropped, limitedDropped, closedDropped, budgetDropped, reserveDropped,
		proxySYNs, proxyReturned, proxyChecked, freedOpened, tooLong,
	}
}

// chain is a list of rules; a base chain if it has a hook.
type chain struct {
	name  string
	hook  *hook
	rules []rule
}

// hook is where a base chain sees packets.
type hook struct {
	name     string
	num      *nftables.ChainHook
	priority nftables.ChainPriority
	nat      bool // it translates; else it filters
}

// kind is the type of a base chain.
func (h hook) kind() nftables.ChainType {
	if h.nat {
		return nftables.ChainTypeNAT
	}
	return nftables.ChainTypeFilter
}

// Priorities are relative to those of enum nf_ip_hook_priorities in
// include/uapi/linux/netfilter_ipv4.h. beforeRaw is before every rule that leaves traffic untracked
// and before conntrack (-200), but after defragmentation (-400), so ports can be read. last is after
// every filter, before conntrack confirms an entry.
const (
	beforeRaw      nftables.ChainPriority = -310
	afterConntrack nftables.ChainPriority = -150
	last           nftables.ChainPriority = 1<<31 - 2

	// beforeSourceNAT is where conntrack is about to translate answers (100): all that comes before sees them as the
	// inside host sent them, all that comes after as clients do.
	beforeSourceNAT nftables.ChainPriority = 99

	// beforeDestinationNAT comes before the host's own translations of destinations (-100).
	beforeDestinationNAT nftables.ChainPriority = -101
)

// retained is what a table keeps although nothing wants it any more.
type retained struct {
	narrow time.Time               // until when it is asked who can't take long packets
	hooks  map[string]bool         // base chains that can't go without harm, see [Table.holdHooks]
	zones  map[uint16]struct{}     // those that had limits
	rates  map[prefixRate]struct{} // an element that has ended, but is not yet collected, still points to its chain
}

// prefixRate is a chain that holds sources of one prefix length to the rate.
type prefixRate struct {
	meter addressSet
	bits  int
}

func (r prefixRate) chain() string {
	return fmt.Sprintf("rate%s_%d", r.meter.name[len("meter"):], r.bits)
}

// prefixRateOf returns the rate for a prefix that is limited in a scope.
func prefixRateOf(p netip.Prefix, of scope) prefixRate {
	if p.Addr().Is6() {
		return prefixRate{meters[1].in(of), p.Bits()}
	}
	return prefixRate{meters[0].in(of), p.Bits()}
}

// ruleset builds what d wants at a time. It adds to keep the chains that must stay from now on.
func (d Desired) ruleset(now time.Time, keep *retained) ruleset {
	r := ruleset{
		addresses: map[string][]element{},
		services:  map[string]map[service]struct{}{},
		ports:     map[string]map[uint16]struct{}{},
		selectors: map[policy.Selector]policy.Stage{},
		rate:      fmt.Sprintf("%d/%d", d.Posture.LimitRate, d.Posture.LimitBurst),
	}
	keep.addZones(d.Posture.Limits)
	r.scopes = keep.scopes()
	r.greedy, d.Posture.Limits = d.greedyElements(now)
	block := d.limits(policy.Block, everyZone, false, now)
	for i := range 2 {
		v6 := i == 1
		r.addresses[allow[i].name] = outermost(d.allowed(), v6)
		r.addresses[blocked[i].name] = outermost(block, v6)
	}
	limits, partly := map[scope]bool{}, map[scope]bool{}
	for _, of := range r.scopes {
		whole := r.limit(limited, of, d.limits(policy.LimitNew, of, false, now), keep)
		partly[of] = r.limit(butTCP, of, d.limits(policy.LimitNew, of, true, now), keep)
		limits[of] = r.limitFlows(of, keep) || whole || partly[of]
	}
	for _, n := range d.Posture.Notrack {
		r.selectors[n.Selector] = n.Stage
	}
	r.counters = namedCounters()
	r.addServices()
	for _, one := range d.Posture.Synproxy {
		if s, ok := serviceOf(one); ok {
			for _, name := range []string{proxied, proxyCompleted, proxyDelivered} {
				r.services[name][s] = struct{}{}
			}
		}
	}
	r.inside, r.learn = proxiedInsideOf(d.Posture), d.Posture.Learn
	b := builder{
		posture: d.Posture,
		blocks:  len(block) > 0, limits: limits[everyZone], partly: partly, greedy: r.greedy,
		zones:    slices.DeleteFunc(slices.Clone(r.scopes), func(of scope) bool { return !of.zoned || !limits[of] }),
		exempt:   r.exempt(),
		looks:    !d.Posture.Uncounted,
		narrow:   now.Before(keep.narrow),
		services: len(r.services[requests]) > 0,
		untracks: len(r.services[untracked]) > 0,
		ports:    r.ports,
		custom:   r.custom(!d.Posture.Uncounted), forwards: r.forwardedOf(),
		trials: r.trials(), inside: r.inside,
	}
	for _, s := range b.custom {
		r.counters = append(r.counters, s.counters()...)
	}
	for _, f := range b.forwards {
		r.counters = append(r.counters, f.counters()...)
	}
	for _, f := range b.inside {
		r.counters = append(r.counters, f.counters()...)
	}
	slices.Sort(r.counters)
	r.chains = b.chains(keep)
	r.leaveIdle(keep)
	return r
}

// limit fills sets of a scope, and says whether anybody is in them.
func (r *ruleset) limit(sets [2]addressSet, of scope, slow []element, keep *retained) bool {
	for i := range sets {
		set := sets[i].in(of)
		r.addresses[set.name] = outermost(slow, set.v6)
		keep.add(of, r.addresses[set.name])
	}
	return len(slow) > 0
}

// limitFlows keeps what those go to that are limited in some classes of flows, and says whether anybody is.
func (r *ruleset) limitFlows(of scope, keep *retained) (limits bool) {
	for i := range limited {
		if set := limited[i].in(of); len(r.greedy[greedy[i].in(of)]) > 0 {
			keep.add(of, []element{{prefix: netip.PrefixFrom(set.any(), set.bits())}})
			limits = true
		}
	}
	return limits
}

// leaveIdle takes base chains away that have nothing to do, except those that must stay.
func (r *ruleset) leaveIdle(keep *retained) {
	r.chains = slices.DeleteFunc(r.chains, func(c chain) bool {
		return c.hook != nil && len(c.rules) == 0 && !keep.hooks[c.name]
	})
}

// add keeps the chains that limited sources go to.
func (k *retained) add(of scope, limited []element) {
	if k.rates == nil {
		k.rates = map[prefixRate]struct{}{}
	}
	var last prefixRate
	for _, e := range limited {
		if r := prefixRateOf(e.prefix, of); r != last {
			k.rates[r] = struct{}{}
			last = r
		}
	}
}

// sorted returns the rates in a fixed order.
func (k *retained) sorted() []prefixRate {
	return slices.SortedFunc(maps.Keys(k.rates), func(a, b prefixRate) int {
		return cmp.Or(strings.Compare(a.meter.name, b.meter.name), a.bits-b.bits)
	})
}

// addServices fills the service sets with the selectors that are a protocol and a port.
func (r *ruleset) addServices() {
	for _, name := range serviceSets() {
		r.services[name] = map[service]struct{}{}
	}
	for _, s := range portSets() {
		r.ports[s.name] = map[uint16]struct{}{}
	}
	for sel, stage := range r.selectors {
		s, ok := serviceOf(sel)
		if !ok {
			continue
		}
		r.addPort(s, stage)
		for _, name := range trialSets() {
			if name != opened || s.proto == policy.TCP { // of others every packet opens a flow
				r.services[name][s] = struct{}{}
			}
		}
		if stage >= policy.Trial {
			r.services[untracked][s] = struct{}{}
		}
	}
}

// addPort fills the port sets.
func (r *ruleset) addPort(s service, stage policy.Stage) {
	sets := freed
	if stage == policy.Trial {
		sets = onTrial
		r.services[asked][s] = struct{}{}
	}
	for _, set := range sets {
		if set.proto == s.proto && stage != policy.Watched {
			r.ports[set.name][s.port] = struct{}{}
		}
	}
}

// exempt reports by family whether some allowed source is in a blocked prefix.
func (r *ruleset) exempt() (families [2]bool) {
	for i := range families {
		families[i] = overlap(r.addresses[allow[i].name], r.addresses[blocked[i].name])
	}
	return families
}

// serviceOf returns sel as an element of the service sets; it is one if it is a protocol and a port and
// nothing else. All others have rules of their own.
func serviceOf(sel policy.Selector) (service, bool) {
	s := service{sel.Protocol, sel.Port}
	return s, sel.Port != 0 && sel == policy.Selector{Protocol: s.proto, Port: s.port}
}

// custom returns the selectors that have rules of their own, in a fixed order.
func (r *ruleset) custom(counted bool) []custom {
	var list []custom
	for sel, stage := range r.selectors {
		if _, ok := serviceOf(sel); !ok && !sel.Forwarded() {
			list = append(list, custom{sel, stage >= policy.Trial, counted})
		}
	}
	slices.SortFunc(list, func(a, b custom) int {
		return strings.Compare(a.selector.String(), b.selector.String())
	})
	return list
}

// trials returns the TCP selectors that are on trial, in a fixed order.
func (r *ruleset) trials() []custom {
	var list []custom
	for sel, stage := range r.selectors {
		if sel.OfTCP() && !sel.Forwarded() && stage == policy.Trial {
			list = append(list, custom{selector: sel, untracked: true})
		}
	}
	slices.SortFunc(list, func(a, b custom) int {
		return strings.Compare(a.selector.String(), b.selector.String())
	})
	return list
}
