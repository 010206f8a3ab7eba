package nft

import (
	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"ctguard/policy"
)

// builder writes the chains. Rules appear only where something needs them, so that the table shows
// what is engaged; the chains themselves are always the same.
type builder struct {
	posture  policy.Posture
	blocks   bool // some source is blocked
	limits   bool // some source is limited
	greedy   map[greedySet][]greedyElement
	services bool // some selector is a plain service
	untracks bool // some plain service is untracked
	custom   []custom
	forwards []forwarded
	trials   []custom // every TCP selector on trial, plain services too
}

// chains returns all chains in the order in which they are made.
func (b builder) chains(keep *retained) []chain {
	list := []chain{
		{"early", &hook{"prerouting", nftables.ChainHookPrerouting, beforeRaw}, b.early()},
		{"late", &hook{"prerouting", nftables.ChainHookPrerouting, afterConntrack}, b.late()},
		{"outgoing", &hook{"output", nftables.ChainHookOutput, beforeRaw}, b.outgoing()},
		{"cookies", &hook{"input", nftables.ChainHookInput, beforeRaw}, b.cookies()},
		{"passed_in", &hook{"input", nftables.ChainHookInput, last}, b.passedIn()},
		{"passed_out", &hook{"output", nftables.ChainHookOutput, last}, b.passedOut()},
		{"arrive", nil, b.arrive()},
		{"service", nil, b.service()},
		{"leave", nil, b.leave()},
		{"invalid", nil, b.invalid()},
		{"opening", nil, b.opening()},
		{"refuse", nil, b.refuse()},
		{"budgets", nil, b.budgets()},
		{"closed", nil, b.closed()},
		{"proxy", nil, b.proxy()},
	}
	if keep.forwards = keep.forwards || len(b.forwards) > 0; keep.forwards {
		list = append(list,
			chain{"through", &hook{"forward", nftables.ChainHookForward, last}, b.through()},
			chain{"behind", &hook{"postrouting", nftables.ChainHookPostrouting, beforeSourceNAT}, b.behind()})
	}
	for _, r := range keep.sorted() {
		list = append(list, chain{r.chain(), nil, b.prefixRate(r)})
	}
	return list
}

// early sees packets before conntrack: what is dropped here costs no entry, what is left untracked
// here makes none.
func (b builder) early() []rule {
	var list []rule
	if b.blocks || b.limits || b.posture.ClosedPorts || len(b.posture.Budgets) > 0 {
		list = append(list,
			newRule(source.inSet(allow[0]), goTo("arrive")),
			newRule(source.inSet(allow[1]), goTo("arrive")))
	}
	if b.blocks {
		list = append(list,
			newRule(source.inSet(blocked[0]), count(blockedDropped), drop()),
			newRule(source.inSet(blocked[1]), count(blockedDropped), drop()))
	}
	if b.limits {
		list = append(list, newRule(opensTCP(), jump("opening")))
	}
	if b.posture.ClosedPorts {
		list = append(list,
			newRule(protocol(unix.IPPROTO_TCP), going(toLocal), jump("closed")),
			newRule(protocol(unix.IPPROTO_UDP), going(toLocal), jump("closed")))
	}
	if len(b.posture.Budgets) > 0 {
		list = append(list, newRule(opensTCP(), jump("budgets")))
	}
	if b.services || len(b.custom) > 0 || len(b.forwards) > 0 {
		list = append(list, newRule(goTo("arrive")))
	}
	return afterFirst(newRule(inLoopback(), back()), list)
}

// closed drops packets for this host that no socket waits for, above a rate that the host answers as ever.
func (b builder) closed() []rule {
	if !b.posture.ClosedPorts {
		return nil
	}
	drops := []statement{count(closedDropped), drop()}
	if b.posture.ClosedRate > 0 {
		drops = append([]statement{aboveRate(b.posture.ClosedRate)}, drops...)
	}
	return []rule{newRule(awaited(), back()), newRule(drops...)}
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
	return list
}

// late sees packets after conntrack and before any NAT. What is dropped here while its entry is not
// confirmed leaves no entry.
func (b builder) late() []rule {
	var list []rule
	if b.posture.DropInvalid {
		list = append(list, newRule(ctInvalid(), jump("invalid")))
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
	if len(list) > 0 {
		list = append([]rule{newRule(source.inSet(allow[0]), back()), newRule(source.inSet(allow[1]), back())}, list...)
	}
	if b.proxies() {
		// Before anything may drop it: whether cookies come back, and get to where they are checked.
		list = append([]rule{newRule(ctInvalid(), answersTCP(), destination.tcpServiceIn(proxied), going(toLocal),
			fromSomebody(), count(proxyReturned), back())}, list...)
	}
	return afterFirst(newRule(inLoopback(), back()), list)
}

// proxies reports whether some port is behind synproxy.
func (b builder) proxies() bool { return len(b.posture.Synproxy) > 0 }

// cookies sees packets for this host before its own filter: conntrack calls the ACK that brings a
// cookie back invalid, and many filters drop that.
//
// The SYN is answered after the filter instead, in passed_in: only who may connect gets a cookie, and
// the connection that is opened for a cookie comes by way of lo, which most filters accept unseen.
//
// The ACK that completes that connection echoes a timestamp which the kernel has brought in line with the
// cookie's though it is the listener's own already (synproxy_send_server_ack in
// net/netfilter/nf_synproxy_core.c). Since 6.15 a listener refuses an echo of what it never sent
// (tcp_check_req in net/ipv4/tcp_minisocks.c), and the connection would wait for a second until
// the listener asks again. Without an echo there is nothing to refuse.
func (b builder) cookies() []rule {
	if !b.proxies() {
		return nil
	}
	return []rule{
		newRule(inLoopback(), answersTCP(), destination.tcpServiceIn(proxied), fromElsewhere(), withoutEcho(), back()),
		newRule(inLoopback(), back()),
		newRule(ctInvalid(), answersTCP(), destination.tcpServiceIn(proxied), count(proxyChecked), goTo("proxy")),
	}
}

// proxy answers SYNs and takes cookies.
func (b builder) proxy() []rule {
	if !b.proxies() {
		return nil
	}
	return []rule{newRule(synproxy(b.posture.Handshake, false)...), newRule(synproxy(b.posture.Handshake, true)...)}
}

// proxyOpens counts the connections that synproxy opens to this host's listeners by way of lo.
func (b builder) proxyOpens(by statement, set string) []rule {
	if !b.proxies() {
		return nil
	}
	return []rule{newRule(by, opensTCP(), fromElsewhere(), destination.tcpServiceIn(set))}
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
	for _, f := range b.forwards { // first: they are asked at an address of this host
		list = append(list, f.early()...)
	}
	if b.services || b.hasLocal() {
		list = append(list, newRule(going(toLocal), goTo("service")))
	}
	for _, s := range b.custom {
		if s.selector.Group {
			list = append(list, s.counting(requests, s.incoming(), true)...)
		}
	}
	return list
}

// hasLocal reports whether some custom selector is about this host's own addresses.
func (b builder) hasLocal() bool {
	for _, s := range b.custom {
		if !s.selector.Group {
			return true
		}
	}
	return false
}

// service sees packets for this host's own addresses.
func (b builder) service() []rule {
	var list []rule
	if b.leaves() {
		list = rememberNarrow()
	}
	if b.services {
		list = append(list,
			newRule(fromSomebody(), destination.serviceIn(requests)),
			newRule(opensTCP(), destination.tcpServiceIn(opened)),
			newRule(destination.serviceIn(untracked), notrack()))
	}
	for _, s := range b.custom {
		if s.selector.Group {
			continue
		}
		list = append(list, s.opening()...)
		list = append(list, s.answering(answers)...)
		list = append(list, s.counting(requests, s.incoming(), true)...)
	}
	return list
}

// outgoing counts the answers, and leaves them untracked where the requests are.
//
// A trial is to find out whether the host's own rules let a service go untracked. Rules that answer
// what they don't know with a reset would end every connection of that service: none gets out.
func (b builder) outgoing() []rule {
	var list []rule
	for _, s := range b.trials {
		list = append(list, rules(s.outgoing(), resets(), drop())...)
	}
	for _, f := range b.forwards {
		list = append(list, f.own()...)
	}
	if b.services {
		list = append(list,
			newRule(source.serviceIn(replies)),
			newRule(source.serviceIn(untracked), jump("leave")))
	}
	for _, s := range b.custom {
		list = append(list, s.counting(replies, s.outgoing(), true)...)
	}
	return append(b.proxyOpens(outLoopback(), proxyCompleted), afterFirst(newRule(outLoopback(), back()), list)...)
}

// passedIn counts requests that the host's own rules let through.
func (b builder) passedIn() []rule {
	var list []rule
	if b.services {
		list = append(list, newRule(destination.serviceIn(delivered)))
	}
	for _, s := range b.custom {
		list = append(list, s.answering(heard)...)
		list = append(list, s.counting(delivered, s.received(), false)...)
	}
	if b.proxies() && !b.posture.LastCookies {
		list = append(list, newRule(source.inSet(allow[0]), back()), newRule(source.inSet(allow[1]), back()),
			newRule(ctNew(), opensTCP(), destination.tcpServiceIn(proxied), count(proxySYNs), goTo("proxy")))
	}
	return append(b.proxyOpens(inLoopback(), proxyDelivered), afterFirst(newRule(inLoopback(), back()), list)...)
}

// passedOut counts answers that the host's own rules let through. It sits at output and not at
// postrouting, where forwarded packets would have to be told apart.
func (b builder) passedOut() []rule {
	var list []rule
	if b.services {
		list = append(list, newRule(source.serviceIn(sent)))
	}
	for _, s := range b.custom {
		list = append(list, s.counting(sent, s.outgoing(), false)...)
	}
	return afterFirst(newRule(outLoopback(), back()), list)
}

// through sees what is forwarded, behind the host's own filter.
func (b builder) through() []rule {
	var list []rule
	for _, f := range b.forwards {
		list = append(list, f.through()...)
	}
	return list
}

// behind sees what leaves, where conntrack would translate it.
func (b builder) behind() []rule {
	var list []rule
	for _, f := range b.forwards {
		list = append(list, f.behind()...)
	}
	return list
}

// invalid drops what conntrack could not place. Traffic that is going untracked or was until a
// moment ago is spared. So are ICMP errors: conntrack calls those invalid that are about a flow which it does not know,
// because the flow is untracked or goes by another route, path MTU discovery needs them, and they make no entries.
func (b builder) invalid() []rule {
	if !b.posture.DropInvalid {
		return nil
	}
	var list []rule
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
	return append(b.greedyRules(), newRule(sourceVerdict(limited[0])), newRule(sourceVerdict(limited[1])))
}

// prefixRate lets a limited source open flows up to the rate. The limited prefix is what is metered, so
// a prefix does not get the rate once for each of its addresses.
func (b builder) prefixRate(r prefixRate) []rule {
	if !b.limits {
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
	case !b.limits:
		return nil
	case b.posture.Reject:
		return []rule{newRule(count(limitedDropped)), newRule(resetTCP()), newRule(reject())}
	}
	return []rule{newRule(count(limitedDropped), drop())}
}
