package nft

import (
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"ctguard/policy"
)

// forwarded is a service of an inside host, see [policy.Selector.Forwarded].
//
// Untracked it is translated without an entry: its requests before conntrack, so that they are routed to the inside
// host, its answers after routing, where conntrack too would do it. Rewritten before routing the kernel would drop
// the answers as martians: their source would be its own address. Nothing in a connection's numbers changes, so
// connections go on when a service goes untracked.
//
// Requests and answers go untracked by the same test, the route to the client: a connection that is untracked one
// way only would break.
type forwarded struct {
	selector  policy.Selector
	untracked bool
}

// The counters of a forwarded service, besides those that every selector has.
const (
	besides      = "besides"       // packets that come to the inside host's port some other way
	errorsCome   = "errors"        // ICMP errors that tell the inside host to send smaller packets
	errorsPassed = "errors_passed" // of them, those that the host's own rules let through
)

func (f forwarded) counter(kind string) string { return nameOf(kind, f.selector) }

func (f forwarded) counters() []string {
	kinds := []string{requests, delivered, replies, sent, besides, errorsCome, errorsPassed}
	if f.selector.OfTCP() {
		kinds = append(kinds, opened)
	}
	names := make([]string, len(kinds))
	for i, kind := range kinds {
		names[i] = f.counter(kind)
	}
	return names
}

// inside returns the inside host's address as a prefix, and its ports.
func (f forwarded) inside() (addr netip.Prefix, first, last uint16) {
	first, last = f.selector.Ports()
	to := f.selector.Inside
	return netip.PrefixFrom(to.Addr(), to.Addr().BitLen()), to.Port(), to.Port() + (last - first)
}

// at matches an address and ports on one side, and the other end's prefix if there is one.
func (f forwarded) at(s, other side, addr netip.Prefix, first, last uint16) []statement {
	list := []statement{s.in(addr)}
	if f.selector.Remote.IsValid() {
		list = append(list, other.in(f.selector.Remote))
	}
	if first == last {
		return append(list, s.is(f.selector.Protocol, first))
	}
	return append(list, s.within(f.selector.Protocol, first, last))
}

// request matches what clients send, before it is translated.
func (f forwarded) request() []statement {
	first, last := f.selector.Ports()
	list := f.at(destination, source, f.selector.Local, first, last)
	if f.selector.Device != "" {
		list = append(list, comesBy(f.selector.Device))
	}
	return append(list, routed(source, f.selector.Uplink))
}

// delivery matches it when it was translated.
func (f forwarded) delivery() []statement {
	addr, first, last := f.inside()
	by := f.selector.Uplink
	if f.selector.Device != "" {
		by = f.selector.Device
	}
	return append(f.at(destination, source, addr, first, last), comesBy(by))
}

// answer matches what the inside host sends back, before routing.
func (f forwarded) answer() []statement {
	addr, first, last := f.inside()
	return append(f.at(source, destination, addr, first, last),
		notBy(f.selector.Uplink), routed(destination, f.selector.Uplink))
}

// leaving matches it after routing.
func (f forwarded) leaving() []statement {
	addr, first, last := f.inside()
	return append(f.at(source, destination, addr, first, last), leavesBy(f.selector.Uplink))
}

// rewrite is what is written into packets that a test is true of.
type rewrite struct{ test, writes []statement }

// translates writes an address and a port on one side. Where packets need to be told apart there are several rewrites,
// and the first whose test is true is it.
func (f forwarded) translates(s side, to netip.AddrPort) []rewrite {
	if !f.selector.Translated() {
		return []rewrite{{}}
	}
	addr := s.setAddr(to.Addr())
	if f.selector.Inside.Port() == f.selector.Port {
		return []rewrite{{writes: []statement{addr}}}
	}
	all := []rewrite{{writes: []statement{s.setPort(f.selector.Protocol, to.Port()), addr}}}
	if f.selector.Protocol == policy.UDP && to.Addr().Is4() {
		plain := rewrite{[]statement{withoutChecksum()}, []statement{s.setPortAlone(f.selector.Protocol, to.Port()), addr}}
		all = append([]rewrite{plain}, all...)
	}
	return all
}

// outside is where clients send to.
func (f forwarded) outside() netip.AddrPort {
	return netip.AddrPortFrom(f.selector.Local.Addr(), f.selector.Port)
}

// early returns the rules for packets before conntrack.
func (f forwarded) early() []rule {
	var list []rule
	if f.selector.OfTCP() {
		list = rules([][]statement{f.request()}, opensTCP(), count(f.counter(opened)))
	}
	if !f.untracked {
		list = append(list, newRule(append(f.request(), count(f.counter(requests)), back())...),
			newRule(append(f.answer(), count(f.counter(replies)), back())...))
		return append(list, f.counted(errorsCome, outerError)...)
	}
	list = append(list, f.follows(f.request(), source)...)
	for _, to := range f.translates(destination, f.selector.Inside) {
		list = append(list, newRule(slices.Concat(f.request(), to.test, []statement{count(f.counter(requests)), notrack()},
			to.writes, []statement{back()})...))
	}
	list = append(list, f.follows(f.answer(), destination)...)
	list = append(list, newRule(append(f.answer(), count(f.counter(replies)), notrack(), back())...))
	list = append(list, f.counted(errorsCome, outerError)...)
	return append(list, f.errorsEarly()...)
}

// through returns the rules behind the host's own filter for what is forwarded.
func (f forwarded) through() []rule {
	list := []rule{newRule(append(f.delivery(), count(f.counter(delivered)))...)}
	if f.selector.Translated() {
		// What comes to the inside host by its own address, or by another one, is answered by the same port, and
		// no rule could tell its answers apart.
		addr, first, last := f.inside()
		list = append(list, newRule(append(f.at(destination, source, addr, first, last), comesBy(f.selector.Uplink),
			askedElsewhere(f.selector.Local.Addr()), count(f.counter(besides)))...))
	}
	return append(list, f.counted(errorsPassed, innerError)...)
}

// behind returns the rules after routing and behind the host's own filters, where conntrack translates answers.
func (f forwarded) behind() []rule {
	list := []rule{newRule(append(f.leaving(), count(f.counter(sent)))...)}
	if !f.untracked || !f.selector.Translated() {
		return list
	}
	for _, to := range f.translates(source, f.outside()) {
		list = append(list, newRule(slices.Concat(f.leaving(), []statement{ctUntracked()}, to.test, to.writes)...))
	}
	return append(list, f.errorsBehind()...)
}

// own returns the rules for what this host itself sends. Rules of the host that answer what they don't know, as an
// untracked packet, would end connections in the inside host's or a client's name: no such answer gets out. What this
// host says to the inside host in its own name is none of this.
func (f forwarded) own() []rule {
	if !f.untracked {
		return nil
	}
	addr, first, last := f.inside()
	var list []rule
	if f.selector.OfTCP() {
		list = append(list, newRule(append(f.at(source, destination, addr, first, last), resets(), drop())...),
			newRule(append(f.at(destination, source, addr, first, last), fromElsewhere(), resets(), drop())...))
	}
	return append(list, f.errorsOut()...)
}

// follows returns rules that remember who has a flow, so that it can be given an entry when the service is tracked
// again. Spoofed addresses have none: of TCP a flow is one that is answered by more than a handshake, of UDP one whose
// client has sent twice.
func (f forwarded) follows(packets []statement, client side) []rule {
	if !f.followed() {
		return nil
	}
	flows, other := f.sets()
	when := func(then ...statement) rule { return newRule(append(packets[:len(packets):len(packets)], then...)...) }
	switch {
	case f.selector.OfTCP() && client == destination:
		return []rule{when(closes(), client.remember(other), client.remember(flows.without())),
			when(goesOn(), client.unknown(other), client.remember(flows))}
	case f.selector.OfTCP():
		return []rule{when(closes(), client.remember(other), client.remember(flows.without()))}
	case client == destination:
		return []rule{when(client.known(flows), client.remember(flows))}
	}
	return []rule{when(client.known(other), client.remember(flows)), when(client.remember(other))}
}

// followed reports whether it is remembered who has a flow. One of several ports would have to be remembered by port.
func (f forwarded) followed() bool { return f.untracked && f.selector.Last == 0 }

// forwardedOf returns the forwarded services among the selectors, in a fixed order.
func (r *ruleset) forwardedOf() []forwarded {
	var list []forwarded
	for sel, stage := range r.selectors {
		if sel.Forwarded() {
			list = append(list, forwarded{sel, stage >= policy.Trial})
		}
	}
	slices.SortFunc(list, func(a, b forwarded) int {
		return strings.Compare(a.selector.String(), b.selector.String())
	})
	return list
}

// family is the selector's family as newRule takes it.
func (f forwarded) family() uint8 {
	if f.selector.Local.Addr().Is6() {
		return unix.NFPROTO_IPV6
	}
	return unix.NFPROTO_IPV4
}
