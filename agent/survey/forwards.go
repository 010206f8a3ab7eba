package survey

import (
	"cmp"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"ctguard/policy"
)

// forward is a rule that sends packets to an inside host, or lets those pass that go there anyway.
type forward struct {
	exactRule
	before []exactRule // what translates destinations and packets come to first
	others []exactRule // and the rest of what does
}

// Kinds of base chains.
const (
	natChain    = string(nftables.ChainTypeNAT)
	filterChain = string(nftables.ChainTypeFilter)
)

// mostForwards is how many forwarded services are looked at: each costs every packet some rules.
const mostForwards = 16

// forwards returns the rules that lead to inside hosts: those that translate the destination, and those of the
// filter that let through what goes to one port of one address.
func (r *ruleset) forwards() []forward {
	var list []forward
	steps := r.stepsAt(natChain, prerouting)
	for i, s := range steps {
		if s.verdict == translated && (s.protocol == unix.IPPROTO_TCP || s.protocol == unix.IPPROTO_UDP) && s.ports != nil {
			list = append(list, forward{s, steps[:i], steps[i+1:]})
		}
	}
	for _, s := range r.stepsAt(filterChain, forwarding) {
		if s.verdict == accepted && s.exact && s.states == 0 && !s.local && s.dst.IsValid() && s.dst.IsSingleIP() &&
			s.ports != nil && (s.protocol == unix.IPPROTO_TCP || s.protocol == unix.IPPROTO_UDP) {
			s.to = netip.AddrPortFrom(s.dst.Addr(), 0)
			s.out, s.notOut = "", "" // where it leads is asked of the routing table
			if !slices.ContainsFunc(steps, s.isTargetOf) {
				list = append(list, forward{s, steps, nil})
			}
		}
	}
	return list
}

// isTargetOf says whether a rule translates to the address of a service, of which then nothing else is repeated.
func (s exactRule) isTargetOf(step exactRule) bool {
	return step.verdict == translated && step.to.Addr() == s.to.Addr()
}

// Inside is what is known of the services of inside hosts that this host's rules lead to.
type Inside struct {
	Services  []policy.Selector
	Refused   map[policy.Selector]string // those that must stay tracked, and why
	Unproxied map[policy.Selector]string // TCP services of whose handshakes synproxy can't take care, and why
}

// Forwarded returns the services of inside hosts. What can't be named at all is left out, and stays tracked as well.
func (h *Host) Forwarded() (Inside, error) {
	found, err := h.rewrites()
	if err != nil || len(found.forwards) == 0 {
		return Inside{}, err
	}
	list := Inside{Refused: make(map[policy.Selector]string), Unproxied: make(map[policy.Selector]string)}
	f := finder{h: h, found: found, byMark: sync.OnceValue(routesByMark), hidden: sync.OnceValue(h.hiddenAddress),
		here: &addresses{read: h.locals}}
	for _, one := range found.forwards {
		for _, s := range f.selectors(one) {
			if slices.Contains(list.Services, s) {
				continue
			}
			list.Services = append(list.Services, s)
			f.judge(s, one, list)
		}
	}
	ambiguous(list.Services, list.Refused)
	askedAlike(list)
	slices.SortFunc(list.Services, func(a, b policy.Selector) int { return cmp.Compare(a.String(), b.String()) })
	if len(list.Services) > mostForwards {
		for _, s := range list.Services[mostForwards:] {
			delete(list.Refused, s)
			delete(list.Unproxied, s)
		}
		list.Services = list.Services[:mostForwards]
	}
	return list, nil
}

// judge notes why a service must stay tracked, or can't be put behind synproxy. What a rule does with new connections
// by their state is no reason for the second: it goes on seeing each of them.
func (f finder) judge(s policy.Selector, one forward, list Inside) {
	unlike := f.unlike(s, one)
	if reason := cmp.Or(unlike, f.need(s, nil), f.stopped(s)); reason != "" {
		list.Refused[s] = reason
	}
	if s.Protocol != policy.TCP {
		return
	}
	if !s.Translated() {
		unlike = "it is merely routed: cookies for it would not come back to this host itself"
	}
	byState := func(e effect) bool { return e.kind == refusesNew }
	if reason := cmp.Or(unlike, f.need(s, byState)); reason != "" {
		list.Unproxied[s] = reason
	}
}

// stopped names a filter that lets a service in by the state of its connections alone; empty where none does.
func (f finder) stopped(s policy.Selector) string {
	for _, one := range f.found.filters {
		if one.stops(goingIn(s), ctUntracked) {
			return "its packets are let in by the state of their connections alone, in " + one.where
		}
	}
	return ""
}

// goingIn is what comes to an inside host for a service, as filters see it.
func goingIn(s policy.Selector) flowMatch {
	first, last := s.Ports()
	return flowMatch{protocol: protocolNumber(s.Protocol), src: s.Remote, in: cmp.Or(s.Device, s.Uplink),
		out: deviceTo(s.Inside.Addr()), dst: netip.PrefixFrom(s.Inside.Addr(), s.Inside.Addr().BitLen()),
		ports: []ports{{s.Inside.Port(), s.Inside.Port() + (last - first)}}}
}

// askedAlike keeps services from synproxy that clients ask for at the same address and port: the connection that it
// opens has nothing else to tell them apart by.
func askedAlike(list Inside) {
	for _, s := range list.Services {
		for _, o := range list.Services {
			apart := s.Remote.IsValid() && o.Remote.IsValid() && !s.Remote.Overlaps(o.Remote)
			if s != o && s.Protocol == policy.TCP && o.Protocol == policy.TCP && s.Local == o.Local && s.Port == o.Port &&
				!apart && list.Unproxied[s] == "" {
				list.Unproxied[s] = fmt.Sprintf("%s is asked for at the same address and port", o)
			}
		}
	}
}

// ambiguous refuses services that lead to the same port of an inside host: their answers can't be told apart.
func ambiguous(services []policy.Selector, refused map[policy.Selector]string) {
	for i, s := range services {
		for j, o := range services {
			if i == j || s.Protocol != o.Protocol || s.Inside.Addr() != o.Inside.Addr() {
				continue
			}
			first, last := s.Ports()
			from, to := o.Ports()
			if s.Inside.Port() <= o.Inside.Port()+(to-from) && o.Inside.Port() <= s.Inside.Port()+(last-first) &&
				refused[s] == "" {
				refused[s] = fmt.Sprintf("%s leads to the same port of the inside host", o)
			}
		}
	}
}

// finder makes selectors of rules.
type finder struct {
	h      *Host
	found  rewrites
	byMark func() bool
	hidden func() netip.Addr // see [Host.hiddenAddress]
	here   *addresses
}

// selectors names the services that a rule leads to. A range of TCP ports is no service.
func (f finder) selectors(one forward) (list []policy.Selector) {
	proto := policy.TCP
	if one.protocol == unix.IPPROTO_UDP {
		proto = policy.UDP
	}
	uplink := cmp.Or(one.in, wayOut(one.to.Addr()))
	local := one.dst
	if !local.IsValid() || local.Bits() == 0 {
		local = addressOn(uplink, one.to.Addr().Is4())
	}
	for _, r := range one.ports {
		if r.first == 0 || r.first != r.last && (proto == policy.TCP || one.to.Port() != 0 && one.to.Port() != r.first) {
			continue
		}
		s := policy.Selector{Protocol: proto, Port: r.first, Local: local.Masked(), Remote: one.src, Device: one.in,
			Uplink: uplink, Inside: netip.AddrPortFrom(one.to.Addr(), cmp.Or(one.to.Port(), r.first))}
		if r.last != r.first {
			s.Last = r.last
		}
		if s.Remote.IsValid() && s.Remote.Bits() == 0 {
			s.Remote = netip.Prefix{}
		}
		// Names may be of a form that no selector has.
		if parsed, err := policy.ParseSelector(s.String()); err == nil && parsed == s {
			list = append(list, s)
		}
	}
	return list
}

// unlike says why what the host does with a service can't be repeated; empty if nothing speaks against it.
func (f finder) unlike(s policy.Selector, one forward) string {
	if !one.exact || one.states != 0 {
		return "there is more to its rule than can be repeated: " + one.where
	}
	if reason := f.unroutable(s, one); reason != "" {
		return reason
	}
	comes := flowMatch{protocol: one.protocol, ports: []ports{{s.Port, max(s.Port, s.Last)}}, src: s.Remote, dst: s.Local,
		in: s.Uplink}
	for _, b := range one.before {
		if b.meets(comes) {
			return "another rule may take some of it: " + b.where
		}
	}
	if reason := leadsThere(s, one); reason != "" {
		return reason
	}
	goes := goingIn(s)
	goes.in = s.Uplink
	for _, b := range f.found.sources {
		if b.meets(goes) && !f.elsewhere(b.src, s.Uplink) {
			return "its clients' addresses may be translated: " + b.where
		}
	}
	return ""
}

// leadsThere says whether other rules may lead to the same port of the inside host, those that no selector names among
// them: answers could not be told apart.
func leadsThere(s policy.Selector, one forward) string {
	first, last := s.Ports()
	last = s.Inside.Port() + (last - first)
	like := flowMatch{protocol: one.protocol, dst: anyIPv6}
	if s.Inside.Addr().Is4() {
		like.dst = anyIPv4
	}
	for _, o := range slices.Concat(one.before, one.others) {
		if !o.meets(like) {
			continue
		}
		there := o.to.Addr() == s.Inside.Addr() && (o.to.Port() == 0 && anyOf(o.ports, s.Inside.Port(), last) ||
			s.Inside.Port() <= o.to.Port() && o.to.Port() <= last)
		if o.verdict == scattered || o.verdict == translated && there {
			return "another rule may lead to the same port of the inside host: " + o.where
		}
	}
	return ""
}

// need says what else needs its connections to be as the kernel alone makes them; empty if nothing does. Effects of
// which but is true don't count.
func (f finder) need(s policy.Selector, but func(effect) bool) string {
	inside := s
	inside.Port = s.Inside.Port()
	for _, e := range f.found.needs {
		if but != nil && but(e) {
			continue
		}
		if (e.everything || e.forwards(s) || e.forwards(inside)) && (e.kind != marks || f.byMark()) {
			return e.reason()
		}
	}
	for _, one := range []policy.Selector{{Protocol: s.Protocol, Port: s.Port, Last: s.Last},
		{Protocol: s.Protocol, Port: inside.Port}} {
		if module := f.h.helper(one); module != "" {
			return "a conntrack helper watches it: " + module
		}
	}
	switch {
	case f.found.proxied != "":
		return "tproxy on this host: " + f.found.proxied
	case f.h.balanced().any:
		return balances
	case f.hidden().IsValid():
		return inVRF(f.hidden())
	}
	return ""
}

// forwards says whether packets of a forwarded service may come to a point of a chain, be they requests or answers.
func (e effect) forwards(s policy.Selector) bool {
	first, last := s.Ports()
	return !e.loopback && !e.never() && e.hook != input && e.hook != output && e.protocol(protocolNumber(s.Protocol)) &&
		(anyOf(e.ports, first, last) && e.sources == nil || anyOf(e.sources, first, last) && e.ports == nil ||
			e.ports != nil && e.sources != nil)
}

// unroutable says what is wrong with the ways to a service and back.
func (f finder) unroutable(s policy.Selector, one forward) string {
	inner := deviceTo(s.Inside.Addr())
	switch {
	case inner == "":
		return "there is no route to the inside host"
	case inner == s.Uplink:
		return "the inside host is reached by way of " + inner + ", as clients are"
	case one.notIn == s.Uplink:
		return "its rule leaves out what comes by way of " + s.Uplink
	case (!one.dst.IsValid() || one.dst.Bits() == 0) && addressesOn(s.Uplink, s.Local.Addr().Is4()) != 1:
		return "its rule names no address, and " + s.Uplink + " has several"
	case s.Translated() && f.here.elsewhere(s.Local.Addr(), s.Local.Addr()):
		return s.Local.Addr().String() + " is no address of this host"
	case !s.Translated() && !f.here.elsewhere(s.Local.Addr(), s.Local.Addr()):
		return s.Local.Addr().String() + " is an address of this host"
	}
	return policyRouted()
}

// elsewhere says whether a prefix is reached by way of another interface than clients are, for certain.
func (f finder) elsewhere(p netip.Prefix, uplink string) bool {
	if !p.IsValid() || p.Bits() == 0 {
		return false
	}
	list, err := netlink.RouteGet(p.Addr().AsSlice())
	if err != nil || len(list) != 1 || nameOf(list[0].LinkIndex) == uplink {
		return false
	}
	if list[0].Type == unix.RTN_LOCAL && p.IsSingleIP() {
		return true
	}
	// The whole prefix goes there if it is in one that the interface has an address of.
	link, err := netlink.LinkByIndex(list[0].LinkIndex)
	if err != nil {
		return false
	}
	addrs, err := netlink.AddrList(link, netlink.FAMILY_ALL)
	return err == nil && slices.ContainsFunc(addrs, func(a netlink.Addr) bool {
		ones, _ := a.Mask.Size()
		return a.Contains(p.Addr().AsSlice()) && p.Bits() >= ones
	})
}

// wayOut is the interface of the route to an address of the family that nobody has; see [Host.Gateways].
func wayOut(like netip.Addr) string {
	if like.Is4() {
		return deviceTo(netip.MustParseAddr("203.0.113.1"))
	}
	return deviceTo(netip.MustParseAddr("2001:db8::1"))
}

// deviceTo is the interface by which an address is reached; empty where there is no way.
func deviceTo(addr netip.Addr) string {
	list, err := netlink.RouteGet(addr.AsSlice())
	if err != nil || len(list) != 1 || list[0].Type != unix.RTN_UNICAST {
		return ""
	}
	return nameOf(list[0].LinkIndex)
}

func nameOf(index int) string {
	device, err := net.InterfaceByIndex(index)
	if err != nil {
		return ""
	}
	return device.Name
}

// globalOn returns the addresses of one family that an interface has for the world.
func globalOn(device string, v4 bool) (list []netip.Addr) {
	link, err := netlink.LinkByName(device)
	if err != nil {
		return nil
	}
	addrs, err := netlink.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		return nil
	}
	for _, a := range addrs {
		if addr, ok := netip.AddrFromSlice(a.IP); ok && addr.Unmap().Is4() == v4 && !addr.IsLinkLocalUnicast() {
			list = append(list, addr.Unmap())
		}
	}
	return list
}

// addressOn is the first of them.
func addressOn(device string, v4 bool) netip.Prefix {
	if list := globalOn(device, v4); len(list) > 0 {
		return netip.PrefixFrom(list[0], list[0].BitLen())
	}
	return netip.Prefix{}
}

func addressesOn(device string, v4 bool) int { return len(globalOn(device, v4)) }

// policyRouted says that more than destinations decides on routes here, if so: then the route to a client does not
// tell which way its packets go.
func policyRouted() string {
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		rules, err := netlink.RuleList(family)
		if err != nil && family == netlink.FAMILY_V6 {
			continue // a kernel without IPv6
		}
		if err != nil {
			return "what routes depend on here is not known: " + err.Error()
		}
		for _, r := range rules {
			usual := r.Table == unix.RT_TABLE_LOCAL || r.Table == unix.RT_TABLE_MAIN || r.Table == unix.RT_TABLE_DEFAULT
			if !usual || r.Src != nil || r.Dst != nil || r.IifName != "" || r.OifName != "" || r.Mark != 0 {
				return "policy routing: rules choose among routing tables"
			}
		}
	}
	return ""
}
