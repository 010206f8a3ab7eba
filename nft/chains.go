package nft

import (
	"slices"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"ctguard/policy"
)

// builder writes the chains. Rules appear only where something needs them, so that the table shows
// what is engaged. Base chains are there only while they have a rule: an empty one costs each packet as much as two
// rules do.
//
// Most packets are in the middle of a conversation with a service, so what they need comes first, and what few need is
// asked last: whether a source is allowed only once it would be refused, whether an address is this host's only of
// packets to a service's port.
type builder struct {
	posture  policy.Posture
	blocks   bool           // some source is blocked
	limits   bool           // some source is limited, whatever its zone
	zones    []scope        // zones in which some source is limited
	partly   map[scope]bool // some source is limited in all but TCP
	exempt   [2]bool        // by family: some allowed source is in a blocked prefix
	greedy   map[greedySet][]greedyElement
	looks    bool // what becomes of selectors' packets is counted
	narrow   bool // somebody has said that packets need to be smaller
	services bool // some selector is a plain service
	untracks bool // some plain service is untracked
	ports    map[string]map[uint16]struct{}
	custom   []custom
	forwards []forwarded
	trials   []custom // every TCP selector on trial, plain services too
	inside   []proxiedInside
}

// chains returns all chains in the order in which they are made.
func (b builder) chains(keep *retained) []chain {
	list := []chain{
		{"early", &hook{"prerouting", nftables.ChainHookPrerouting, beforeRaw, false}, b.early()},
		{"late", &hook{"prerouting", nftables.ChainHookPrerouting, afterConntrack, false}, b.late()},
		{"outgoing", &hook{"output", nftables.ChainHookOutput, beforeRaw, false}, b.outgoing()},
		{"translate", &hook{"output", nftables.ChainHookOutput, beforeDestinationNAT, true}, b.translate()},
		{"cookies", &hook{"input", nftables.ChainHookInput, beforeRaw, false}, b.cookies()},
		{"passed_in", &hook{"input", nftables.ChainHookInput, last, false}, b.passedIn()},
		{"passed_out", &hook{"output", nftables.ChainHookOutput, last, false}, b.passedOut()},
		{"through", &hook{"forward", nftables.ChainHookForward, last, false}, b.through()},
		{"behind", &hook{"postrouting", nftables.ChainHookPostrouting, beforeSourceNAT, false}, b.behind()},
		{"arrive", nil, b.arrive()},
		{"service", nil, b.service()},
		{"leave", nil, b.leave()},
		{"invalid", nil, b.invalid()},
		{"opening", nil, b.opening()},
		{"refuse", nil, b.refuse()},
		{"budgets", nil, b.budgets()},
		{"blocked", nil, b.blocked()},
		{"closed", nil, b.closed()},
		{"proxy", nil, b.proxy()},
		{"proxy_inside", nil, b.proxyInside()},
		{"reserve", nil, b.reserve()},
	}
	for _, r := range keep.sorted() {
		list = append(list, chain{r.chain(), nil, b.prefixRate(r)})
	}
	for _, of := range keep.scopes()[1:] {
		list = append(list, chain{of.opening(), nil, b.openingIn(of)})
	}
	if len(keep.zones) > 0 {
		list = append(list, chain{"zoned", nil, b.zoned()})
	}
	return list
}

// early sees packets before conntrack: what is dropped here costs no entry, what is left untracked
// here makes none.
func (b builder) early() []rule {
	var list []rule
	if b.blocks {
		for i := range blocked {
			list = append(list, newRule(append([]statement{source.inSet(blocked[i])}, b.block(i)...)...))
		}
	}
	if b.limits {
		list = append(list, newRule(opensTCP(), jump("opening")))
	}
	if len(b.posture.Budgets) > 0 {
		list = append(list, newRule(opensTCP(), jump("budgets")))
	}
	if len(b.forwardsShown()) == 0 { // what is asked at an inside host's service comes first, see arrive
		list = append(list, b.quietly()...)
	}
	if b.posture.ClosedPorts {
		list = append(list,
			newRule(protocol(unix.IPPROTO_TCP), jump("closed")),
			newRule(protocol(unix.IPPROTO_UDP), jump("closed")))
	}
	for _, of := range b.arriving() {
		list = append(list, newRule(append(of, goTo("arrive"))...))
	}
	return afterFirst(newRule(inLoopback(), back()), list)
}

// block is what becomes of blocked sources of a family.
func (b builder) block(family int) []statement {
	if b.exempt[family] {
		return []statement{jump("blocked")}
	}
	return []statement{count(blockedDropped), drop()}
}

// blocked drops blocked sources that are not allowed.
func (b builder) blocked() []rule {
	if !b.exempt[0] && !b.exempt[1] {
		return nil
	}
	return append(sparesAllowed(), newRule(count(blockedDropped), drop()))
}

// sparesAllowed are rules that let allowed sources by what comes after them in a chain.
func sparesAllowed() []rule {
	return []rule{newRule(source.inSet(allow[0]), back()), newRule(source.inSet(allow[1]), back())}
}

// quietly leaves plain services untracked between looks, with next to nothing counted: of freed ones what opens a
// flow, of those on trial whether anybody asks, which begins a look.
func (b builder) quietly() []rule {
	if b.looks {
		return nil
	}
	var list []rule
	if udp := freed[1]; b.has(udp) { // TCP sends many segments at once, so its packets bear another rule more easily
		list = append(list, newRule(destination.portIn(udp), going(toLocal), count(freedOpened), notrack(), back()))
	}
	if tcp := freed[0]; b.has(tcp) {
		list = append(list,
			newRule(opensTCP(), destination.portIn(tcp), going(toLocal), count(freedOpened)),
			newRule(destination.portIn(tcp), going(toLocal), notrack(), back()))
	}
	for _, set := range onTrial {
		if b.has(set) {
			list = append(list, newRule(destination.portIn(set), going(toLocal), destination.protocolServiceIn(set.proto, asked),
				notrack(), back()))
		}
	}
	return list
}

// has reports whether a set has ports.
func (b builder) has(set portSet) bool { return len(b.ports[set.name]) > 0 }

// arriving says of which packets selectors have yet to be looked for, each a rule's statements.
func (b builder) arriving() [][]statement {
	if b.services && b.looks || len(b.forwardsShown()) > 0 {
		return [][]statement{{}}
	}
	var list [][]statement
	if b.leaves() { // errors that say how long packets may be
		list = [][]statement{{protocol(unix.IPPROTO_ICMP)}, {protocol(unix.IPPROTO_ICMPV6)}}
	}
	for _, s := range b.custom {
		switch {
		case !s.shown():
		case s.selector.Group:
			list = [][]statement{{notTCP()}}
		case s.selector.Protocol != policy.ICMP:
			return [][]statement{{}}
		case len(list) == 0:
			list = [][]statement{{protocol(unix.IPPROTO_ICMP)}, {protocol(unix.IPPROTO_ICMPV6)}}
		}
	}
	return list
}

// closed drops packets for this host that no socket waits for, above a rate that the host answers as ever. Sockets
// are looked for first: most packets have one.
func (b builder) closed() []rule {
	if !b.posture.ClosedPorts {
		return nil
	}
	drops := []statement{going(toLocal), count(closedDropped), drop()}
	if b.posture.ClosedRate > 0 {
		drops = []statement{going(toLocal), aboveRate(b.posture.ClosedRate), count(closedDropped), drop()}
	}
	list := append([]rule{newRule(awaited(), back())}, sparesAllowed()...)
	return append(list, newRule(drops...))
}

// budgets drops what comes of a class above its budget: TCP before conntrack, where its first packet tells
// itself; of other protocols only conntrack knows what belongs to a flow that there is already, and an entry
// that is dropped before it is confirmed leaves nothing. It has a chain of its own, so that a change elsewhere
// does not start its budgets anew.
func (b builder) budgets() []rule {
	var list []rule
	for _, budget := range b.posture.Budgets {
		class := []statement{protocol(budget.Class.Protocol)}
		switch budget.Class.Protocol {
		case unix.IPPROTO_TCP:
			class = []statement{destination.is(policy.TCP, budget.Class.Port), opensTCP()}
		case unix.IPPROTO_UDP:
			class = []statement{destination.is(policy.UDP, budget.Class.Port)}
		}
		list = append(list, newRule(append(class, aboveRate(budget.Rate), count(budgetDropped), drop())...))
	}
	if len(list) == 0 {
		return nil
	}
	return append(sparesAllowed(), list...)
}

// late sees packets after conntrack and before any NAT. What is dropped here while its entry is not
// confirmed leaves no entry.
func (b builder) late() []rule {
	var list []rule
	if b.posture.DropInvalid {
		list = append(list, newRule(ctInvalid(), jump("invalid")))
	}
	if b.posture.Reserve.Engaged {
		list = append(list, newRule(ctOpens(), jump("reserve")))
	}
	if len(b.zones) > 0 {
		list = append(list, newRule(ctOpens(), jump("zoned")))
	}
	if b.limits || len(b.posture.Budgets) > 0 {
		list = append(list, newRule(opensTCP(), back())) // early has metered it
	}
	if b.limits {
		list = append(list, newRule(ctOpens(), jump("opening")))
	}
	if len(b.posture.Budgets) > 0 {
		list = append(list, newRule(ctOpens(), jump("budgets")))
	}
	for _, f := range b.inside {
		list = append([]rule{f.returned(), f.strays()}, list...)
	}
	if b.proxies() {
		// Before anything may drop it: whether cookies come back, and get to where they are checked.
		list = append([]rule{newRule(ctInvalid(), answersTCP(), destination.tcpServiceIn(proxied), going(toLocal),
			fromSomebody(), count(proxyReturned), back())}, list...)
	}
	return afterFirst(newRule(inLoopback(), back()), list)
}

// reserve refuses what others open above what may be filled.
func (b builder) reserve() []rule {
	const bursts = 20 // a twentieth of a second: about a tick
	drops := []statement{count(reserveDropped), drop()}
	switch r := b.posture.Reserve; {
	case !r.Engaged:
		return nil
	case r.Rate > 0:
		drops = append([]statement{aboveRateAndBurst(r.Rate, max(1, r.Rate/bursts))}, drops...)
	}
	return append(sparesAllowed(), newRule(drops...))
}

// afterFirst puts first before list unless list is empty.
func afterFirst(first rule, list []rule) []rule {
	if len(list) == 0 {
		return nil
	}
	return append([]rule{first}, list...)
}

// arrive counts safe traffic on its way in, and leaves it untracked where that is wanted.
func (b builder) arrive() []rule {
	var list []rule
	for _, f := range b.forwardsShown() { // first: they are asked at an address of this host
		list = append(list, f.early()...)
	}
	if len(list) > 0 {
		list = append(list, b.quietly()...)
	}
	if b.services && b.looks || b.hasLocal() {
		list = append(list, newRule(going(toLocal), goTo("service")))
	}
	for _, s := range b.custom {
		if s.selector.Group {
			list = append(list, s.asked()...)
		}
	}
	return list
}

// hasLocal reports whether some custom selector with rules is about this host's own addresses, or errors about what
// goes untracked are.
func (b builder) hasLocal() bool {
	return b.leaves() || slices.ContainsFunc(b.custom, func(s custom) bool { return !s.selector.Group && s.shown() })
}

// forwardsShown returns the forwarded services that have rules: untracked ones are counted all the time, because what
// comes to their hosts some other way would be answered wrongly.
func (b builder) forwardsShown() []forwarded {
	if b.looks {
		return b.forwards
	}
	return slices.DeleteFunc(slices.Clone(b.forwards), func(f forwarded) bool { return !f.untracked })
}

// service sees packets for this host's own addresses.
func (b builder) service() []rule {
	var list []rule
	if b.leaves() {
		list = rememberNarrow()
	}
	if b.services && b.looks {
		list = append(list,
			newRule(fromSomebody(), destination.serviceIn(requests)),
			newRule(opensTCP(), destination.tcpServiceIn(opened)),
			newRule(destination.serviceIn(untracked), notrack()))
	}
	for _, s := range b.custom {
		if s.selector.Group || !s.shown() {
			continue
		}
		list = append(list, s.opening()...)
		if s.counted {
			list = append(list, s.answering(answers)...)
		}
		list = append(list, s.asked()...)
	}
	return list
}

// outgoing counts the answers, and leaves them untracked where the requests are.
//
// A trial is to find out whether the host's own rules let a service go untracked. Rules that answer
// what they don't know with a reset would end every connection of that service: none gets out.
func (b builder) outgoing() []rule {
	var list []rule
	for _, f := range b.forwardsShown() {
		list = append(list, f.own()...)
	}
	if !b.looks {
		list = append(list, b.leaving(freed)...)
	}
	for _, s := range b.trials {
		list = append(list, rules(s.outgoing(), resets(), drop())...)
	}
	switch {
	case !b.looks:
		list = append(list, b.leaving(onTrial)...)
	case b.services:
		list = append(list,
			newRule(source.serviceIn(replies)),
			newRule(source.serviceIn(untracked), jump("leave")))
	}
	for _, s := range b.custom {
		list = append(list, s.answered()...)
	}
	list = append(b.proxyOpens(outLoopback(), proxyCompleted), afterFirst(newRule(outLoopback(), back()), list)...)
	for _, f := range b.inside {
		list = append(f.opens(), list...)
	}
	return list
}

// leaving leaves the answers of plain services untracked between looks.
func (b builder) leaving(sets [2]portSet) []rule {
	then := []statement{notrack(), back()}
	if b.narrow {
		then = []statement{goTo("leave")}
	}
	var list []rule
	for _, set := range []portSet{sets[1], sets[0]} { // as in quietly
		if b.has(set) {
			list = append(list, newRule(append([]statement{source.portIn(set)}, then...)...))
		}
	}
	return list
}

// passedIn counts requests that the host's own rules let through.
func (b builder) passedIn() []rule {
	var list []rule
	if b.looks && b.services {
		list = append(list, newRule(destination.serviceIn(delivered)))
	}
	for _, s := range b.custom {
		if s.counted {
			list = append(list, s.answering(heard)...)
			list = append(list, s.counting(delivered, s.received(), false)...)
		}
	}
	if b.proxies() && !b.posture.LastCookies {
		list = append(append(list, sparesAllowed()...),
			newRule(ctNew(), opensTCP(), destination.tcpServiceIn(proxied), count(proxySYNs), goTo("proxy")))
	}
	return append(b.proxyOpens(inLoopback(), proxyDelivered), afterFirst(newRule(inLoopback(), back()), list)...)
}

// passedOut counts answers that the host's own rules let through. It sits at output and not at
// postrouting, where forwarded packets would have to be told apart.
func (b builder) passedOut() []rule {
	var list []rule
	if b.looks && b.services {
		list = append(list, newRule(source.serviceIn(sent)))
	}
	for _, s := range b.custom {
		if s.counted {
			list = append(list, s.counting(sent, s.outgoing(), false)...)
		}
	}
	return afterFirst(newRule(outLoopback(), back()), list)
}

// through sees what is forwarded, behind the host's own filter.
func (b builder) through() []rule {
	var list []rule
	for _, f := range b.forwardsShown() {
		list = append(list, f.through()...)
	}
	if len(b.proxyInside()) > 0 {
		list = append(list, newRule(ctNew(), opensTCP(), jump("proxy_inside")))
	}
	return list
}

// behind sees what leaves, where conntrack would translate it.
func (b builder) behind() []rule {
	var list []rule
	for _, f := range b.forwardsShown() {
		list = append(list, f.behind()...)
	}
	return append(list, b.listen()...)
}

// invalid drops what conntrack could not place. Traffic that is going untracked or was until a
// moment ago is spared. So are ICMP errors: conntrack calls those invalid that are about a flow which it does not know,
// because the flow is untracked or goes by another route, path MTU discovery needs them, and they make no entries.
func (b builder) invalid() []rule {
	if !b.posture.DropInvalid {
		return nil
	}
	list := sparesAllowed()
	if b.untracks {
		list = append(list, newRule(going(toLocal), destination.serviceIn(untracked), back()))
	}
	for _, s := range b.custom {
		if s.untracked {
			list = append(list, rules(s.received(), back())...)
		}
	}
	for _, kind := range []icmpKind{unreachable[0], unreachable[1], packetTooBig} {
		list = append(list, newRule(kind.statement(), back()))
	}
	list = append(list, rememberStrays()...)
	return append(list, newRule(count(invalidDropped), drop()))
}

// opening sees packets that open a flow, each of them once.
func (b builder) opening() []rule {
	if !b.limits {
		return nil
	}
	return append(sparesAllowed(), b.limited(everyZone)...)
}

// limited hold sources to the rate that are limited in a scope.
func (b builder) limited(of scope) []rule {
	list := append(b.greedyRules(of), newRule(sourceVerdict(limited[0].in(of))), newRule(sourceVerdict(limited[1].in(of))))
	if b.partly[of] {
		list = append(list, newRule(notTCP(), sourceVerdict(butTCP[0].in(of))),
			newRule(notTCP(), sourceVerdict(butTCP[1].in(of))))
	}
	return list
}

// prefixRate lets a limited source open flows up to the rate. The limited prefix is what is metered, so
// a prefix does not get the rate once for each of its addresses.
func (b builder) prefixRate(r prefixRate) []rule {
	if !b.limits && len(b.zones) == 0 {
		return nil
	}
	list := []rule{newRule(goTo("refuse"))}
	if b.posture.LimitRate > 0 {
		within := withinRate(r.meter, r.bits, b.posture.LimitRate, max(b.posture.LimitBurst, 1))
		list = append([]rule{newRule(within, back())}, list...)
	}
	return list
}

// refuse ends what a limited source opened above the rate.
func (b builder) refuse() []rule {
	switch {
	case !b.limits && len(b.zones) == 0:
		return nil
	case b.posture.Reject:
		return []rule{newRule(count(limitedDropped)), newRule(resetTCP()), newRule(reject())}
	}
	return []rule{newRule(count(limitedDropped), drop())}
}
