package survey

import (
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"ctguard/policy"
)

// translation is a place where this host may translate addresses or ports, and what is known about
// the packets that it can touch. Only the first packet of a flow comes there.
type translation struct {
	pins
	hook       nftables.ChainHook // where in a packet's way; prerouting, input, output or postrouting
	masquerade bool               // gives the packet the address of the interface by which it leaves
	everything bool               // nothing is known, not even the hook
	where      string             // which rule, for the operator
}

// touches says whether leaving s untracked would keep t from translating something that it should.
func (t translation) touches(s policy.Selector, multicastRouter bool) bool {
	switch {
	case t.everything || s.Protocol == policy.All:
		return true
	case s.Group:
		return t.touchesGroups(multicastRouter)
	case s.Protocol == policy.ICMP:
		// Untracked are echo requests to this host and its replies. A reply is never the first packet
		// of a flow, so what leaves this host is not at stake.
		return t.hook != output && t.hook != postrouting && (t.protocol(unix.IPPROTO_ICMP) || t.protocol(unix.IPPROTO_ICMPV6))
	}
	if !t.protocol(protocolNumber(s.Protocol)) {
		return false
	}
	// A flow whose source is translated may get any port of this host, to which its answers come.
	return t.hook == input || t.hook == postrouting || t.anyPort(s.Ports())
}

// touchesGroups is touches for multicast and broadcast. What this host sends there has the address of
// the interface already, so masquerading changes only what it routes.
func (t translation) touchesGroups(multicastRouter bool) bool {
	onlyTCP := t.protocols != nil && !slices.ContainsFunc(t.protocols, func(n uint8) bool { return n != unix.IPPROTO_TCP })
	return !t.local && !onlyTCP && (!t.masquerade || multicastRouter)
}

// redirects says whether t may send what comes for s elsewhere.
func (t translation) redirects(s policy.Selector) bool {
	return t.everything || t.hook == prerouting && t.touches(s, true)
}

// Hooks of the kernel: enum nf_inet_hooks in include/uapi/linux/netfilter.h.
const (
	prerouting  = nftables.ChainHook(unix.NF_INET_PRE_ROUTING)
	input       = nftables.ChainHook(unix.NF_INET_LOCAL_IN)
	output      = nftables.ChainHook(unix.NF_INET_LOCAL_OUT)
	postrouting = nftables.ChainHook(unix.NF_INET_POST_ROUTING)
)

func protocolNumber(p policy.Protocol) uint8 {
	if p == policy.UDP {
		return unix.IPPROTO_UDP
	}
	return unix.IPPROTO_TCP
}

// allTranslations returns what the nftables rules of this namespace may translate.
func (r *ruleset) allTranslations() ([]translation, error) {
	var all []translation
	for _, c := range r.chains {
		if c.Type != nftables.ChainTypeNAT || c.Hooknum == nil {
			continue
		}
		found, err := r.translations(keyOf(c.Table), c.Name, 0)
		if err != nil {
			return nil, err
		}
		for _, t := range found {
			t.hook = *c.Hooknum
			all = append(all, t)
		}
	}
	return all, nil
}

// Bounds of what is followed: the kernel allows no deeper jumps (NFT_JUMP_STACK_SIZE), and a chain with
// more translations counts as one that translates anything.
const (
	deepest          = 16
	mostTranslations = 4096
)

// translations returns what a chain and those it jumps to may translate.
func (r *ruleset) translations(table tableKey, chain string, depth int) ([]translation, error) {
	rules, err := r.rules(table, chain)
	if err != nil {
		return nil, err
	}
	where := whereIs(table, chain)
	if depth > deepest {
		return []translation{{where: where}}, nil
	}
	var all []translation
	for _, one := range rules {
		found, err := r.ofRule(table, where, one, depth)
		if err != nil {
			return nil, err
		}
		if all = append(all, found...); len(all) > mostTranslations {
			return []translation{{where: where}}, nil
		}
	}
	return all, nil
}

// ofRule returns what one rule may translate.
func (r *ruleset) ofRule(table tableKey, where string, one rule, depth int) (all []translation, err error) {
	m := reader{rules: r, table: table}
	for _, e := range one {
		switch does, target := m.action(e); does {
		case translates, masquerades:
			all = append(all, translation{pins: m.pins, masquerade: does == masquerades, where: where})
		case jumps:
			found, err := r.translations(table, target, depth+1)
			if err != nil {
				return nil, err
			}
			for _, t := range found {
				t.pins = t.and(m.pins)
				all = append(all, t)
			}
		case matches:
			m.match(e)
		}
	}
	return all, nil
}

// action is what an expression of a nat chain does with a packet.
type action uint8

const (
	matches     action = iota // or counts, or ends the rule
	translates                // or does something unknown
	masquerades               // likewise, to the address of the interface
	jumps
)

// harmless are the extensions of iptables that leave addresses and ports as they are.
var harmless = []string{"LOG", "NFLOG", "MARK", "CONNMARK", "TRACE", "RATEEST"}

// action says what an expression does, and to which chain it jumps.
func (r *reader) action(e expression) (does action, chain string) {
	switch e.name {
	case "nat", "redir":
		return translates, ""
	case "masq":
		return masquerades, ""
	case "target":
		var t expr.Target
		switch {
		case !r.read(e, &t):
		case slices.Contains(harmless, t.Name):
			return matches, ""
		case t.Name == "MASQUERADE":
			return masquerades, ""
		}
		return translates, ""
	case "immediate":
		var i expr.Immediate
		var v expr.Verdict
		if !r.read(e, &i) || i.Register == unix.NFT_REG_VERDICT && !r.read(e, &v) {
			return translates, ""
		}
		if v.Kind == expr.VerdictJump || v.Kind == expr.VerdictGoto {
			return jumps, v.Chain
		}
	case "lookup":
		var l expr.Lookup
		if !r.read(e, &l) || l.IsDestRegSet && l.DestRegister == unix.NFT_REG_VERDICT {
			return translates, "" // a map that may jump anywhere
		}
	case "payload":
		var p expr.Payload
		if !r.read(e, &p) || p.OperationType == expr.PayloadWrite {
			return translates, ""
		}
	case "bitwise", "byteorder", "cmp", "connlimit", "counter", "ct", "dynset", "exthdr", "fib", "hash", "last", "limit", "log",
		"match", "meta", "numgen", "objref", "osf", "quota", "range", "rt", "socket", "xfrm":
	default:
		return translates, ""
	}
	return matches, ""
}
