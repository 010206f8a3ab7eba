package survey

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// kind is what a rule does with packets, as far as it matters to what may go untracked.
type kind uint8

const (
	jumps          kind = iota
	translates          // addresses or ports; or does something unknown in a chain of nat
	mangles             // fields of the packet, without conntrack; in a chain of nat it counts as translating
	proxies             // hands packets to a socket that they are not addressed to
	marks               // marks the packet
	readsMark           // of the connection
	writesMark          //
	readsLabel          //
	writesLabel         //
	readsSecurity       //
	writesSecurity      //
	setsZone            //
	setsHelper          //
	setsTimeout         //
	setsEvents          //
	expects             // announces other connections
	limits              // by the number of connections there are
	measures            // the packets or bytes of a connection
	synproxies          // opens connections in place of a service
	judgesNew           // accepts, drops or sorts the first packet of a connection, and untracked ones not
	refusesNew          // may drop the first packet of a connection, and untracked ones not
	admitsNew           // lets in the first packet of a connection, or other rules decide on it, and untracked ones not
	bySYN               // tells a connection's SYN from what comes in its middle
	offloads            // takes forwarded flows past all other rules
	unknown             // an expression or extension that is not known here
)

// reasons say why a service must stay tracked that may meet a rule; the rule follows.
var reasons = map[kind]string{
	marks:          "its packets are marked by the state of their connection in %s",
	readsMark:      "its connection mark is used by %s",
	writesMark:     "its connection mark is used by %s",
	readsLabel:     "its connection labels are used by %s",
	writesLabel:    "its connection labels are used by %s",
	readsSecurity:  "the security mark of its connections is used by %s",
	writesSecurity: "the security mark of its connections is used by %s",
	setsZone:       "its conntrack zone is set by %s",
	setsHelper:     "a conntrack helper is assigned by %s",
	setsTimeout:    "its conntrack timeouts are set by %s",
	setsEvents:     "its conntrack events are chosen by %s",
	expects:        "connections to come are announced by %s",
	limits:         "its connections are counted by %s",
	measures:       "what its connections carry is counted by %s",
	synproxies:     "its connections are opened by synproxy in %s",
	judgesNew:      "its new connections are told apart by their state in %s",
	refusesNew:     "its new connections may be refused by their state in %s",
	admitsNew:      "its new connections are told apart by their state in %s",
	offloads:       "its connections may be offloaded by %s",
	unknown:        "it is not known what is done with it in %s",
}

// writers name what must be somewhere for a kind that only reads to matter: a mark that nobody writes is
// always 0, for tracked packets as for others.
var writers = map[kind]kind{readsMark: writesMark, readsLabel: writesLabel, readsSecurity: writesSecurity}

// effect is what a rule may do, and to which packets.
type effect struct {
	constraints
	kind  kind
	hook  hook   // of the chain by which packets come
	where string // which chain, for the operator
	chain string // where it jumps to

	// Of a translation.
	masquerade bool       // gives the packet the address of the interface by which it leaves
	everything bool       // nothing is known, not even the hook
	keepsPort  bool       // the port stays as it was
	to         []ports    // the destination port it may give instead; nil means any
	from, last netip.Addr // the destination addresses it may give; not valid where that is unknown
}

// hook is a place in a packet's way: enum nf_inet_hooks in include/uapi/linux/netfilter.h.
type hook uint32

const (
	prerouting  = hook(unix.NF_INET_PRE_ROUTING)
	input       = hook(unix.NF_INET_LOCAL_IN)
	forwarding  = hook(unix.NF_INET_FORWARD)
	output      = hook(unix.NF_INET_LOCAL_OUT)
	postrouting = hook(unix.NF_INET_POST_ROUTING)
)

// Bounds of what is followed: the kernel allows no deeper jumps (NFT_JUMP_STACK_SIZE), and a chain with
// more effects counts as one that does everything that one of them does to any packet.
const (
	deepest     = 16
	mostEffects = 1 << 14
)

// effects returns what the rules of a chain and of those that it jumps to may do. Each chain is looked at once,
// however many jump to it.
func (r *ruleset) effects(at chainKey, depth int) []effect {
	c := r.chains[at]
	if c == nil {
		return nil
	}
	if c.followed {
		return c.effects
	}
	if depth > deepest {
		return []effect{{kind: unknown, where: at.where()}, {kind: translates, where: at.where()}}
	}
	var all []effect
	for _, e := range c.effects {
		if e.kind != jumps {
			all = append(all, e)
			continue
		}
		for _, there := range r.effects(chainKey{at.table, e.chain}, depth+1) {
			there.constraints = there.and(e.constraints)
			all = append(all, there)
		}
		if len(all) > 2*mostEffects {
			all = fewer(all)
		}
	}
	c.effects, c.followed = fewer(all), true
	return c.effects
}

// fewer leaves out what is there twice, and where there is still too much what tells packets apart.
func fewer(all []effect) []effect {
	if len(all) <= 8 {
		return all
	}
	all = distinct(all)
	if len(all) <= mostEffects {
		return all
	}
	for i, e := range all {
		all[i] = effect{kind: e.kind, hook: e.hook, where: e.where, masquerade: e.masquerade,
			constraints: constraints{byConnection: e.byConnection}}
	}
	if all = distinct(all); len(all) <= mostEffects {
		return all
	}
	for i := range all {
		all[i].where = all[0].where
	}
	return distinct(all)
}

// distinct leaves each effect in the list once.
func distinct(all []effect) []effect {
	type plain struct {
		kind                                             kind
		hook                                             hook
		where                                            string
		local, loopback, byConnection, masquerade, keeps bool
		from, last                                       netip.Addr
		lists                                            string
	}
	seen := make(map[plain]bool, len(all))
	var lists []byte
	return slices.DeleteFunc(all, func(e effect) bool {
		lists = append(append(lists[:0], e.protocols...), 0)
		if e.protocols == nil {
			lists = append(lists, 1)
		}
		for _, list := range [][]ports{e.ports, e.sources, e.to} {
			lists = append(lists, 0, byte(min(len(list), 255)))
			if list == nil {
				lists = append(lists, 1)
			}
			for _, p := range list {
				lists = append(lists, byte(p.first>>8), byte(p.first), byte(p.last>>8), byte(p.last))
			}
		}
		key := plain{e.kind, e.hook, e.where, e.local, e.loopback, e.byConnection, e.masquerade, e.keepsPort,
			e.from, e.last, string(lists)}
		again := seen[key]
		seen[key] = true
		return again
	})
}

// all returns what the rules of this namespace may do, each with the hook by which packets come there.
func (r *ruleset) all() []effect {
	var all []effect
	for _, at := range r.bases {
		base := r.chains[at]
		nat := base.kind == string(nftables.ChainTypeNAT)
		for _, e := range r.effects(at, 0) {
			e.hook = base.hook
			switch e.kind {
			case unknown, mangles:
				if e.kind == mangles && !nat {
					continue
				}
				if nat {
					e = effect{constraints: e.constraints, kind: translates, hook: e.hook, where: e.where}
				}
			case marks:
				// A mark decides on routes only where it is set before routing, and to a chain of nat comes only the
				// first packet of a flow.
				if !e.byConnection || nat || base.hook != prerouting && base.hook != output {
					continue
				}
			case translates:
				if !nat {
					continue
				}
			case judgesNew, admitsNew, bySYN:
				if nat || base.hook != prerouting && base.hook != input {
					continue
				}
			case refusesNew:
				if nat || base.hook != prerouting && base.hook != forwarding {
					continue
				}
			case proxies:
				if base.hook != prerouting || nat {
					continue
				}
			default:
			}
			all = append(all, e)
		}
	}
	return all
}

// reason says why a service must stay tracked that meets e.
func (e effect) reason() string { return fmt.Sprintf(reasons[e.kind], e.where) }
