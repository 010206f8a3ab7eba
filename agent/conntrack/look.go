package conntrack

import (
	"cmp"
	"net/netip"
	"slices"

	"ctguard/policy"
)

// Bounds of a closer look. The first entries of a dump are a random sample of the table, and enough to know what a
// source does that holds one in a hundred.
const (
	lookSize  = SampleSize
	mostLook  = 8  // classes of one source that are told
	leastLook = 16 // entries of a source that say something

	mostClasses  = 16
	leastOfClass = SampleSize / 100 // entries
)

// roleOf tells what this host has to do with an entry. An answer that comes from elsewhere than where the question went
// is that of an inside host, to which this one translates.
func roleOf(e *entry, own, inside prefixSet) policy.Role {
	switch {
	case own.contains(e.orig.src):
		return policy.Own
	case own.contains(e.orig.dst):
		var reply tuple
		if e.status&statusDstNAT == 0 || !reply.parse(e.bytes(e.replySpan)) || own.contains(reply.src) {
			return policy.Local
		}
		if inside.contains(e.orig.src) {
			return policy.Outward
		}
		return policy.Inward
	case inside.contains(e.orig.src):
		return policy.Outward
	case inside.contains(e.orig.dst):
		return policy.Inward
	}
	return policy.Through
}

// look is what a scan looks closer at: the roles of its first entries, what classes of flows inside hosts have among
// them, and who answered some of those.
type look struct {
	own, inside prefixSet
	left        int // entries that are still to be looked at
	roles       [policy.NumRoles]int
	flows       map[flowOf]counts // with hosts, kept for the next scan: a flood from inside has a source for each entry
	hosts       map[origin]counts
	peers       map[origin][]netip.Addr // of those whose peers matter
	classes     map[policy.FlowClass]classLook
}

// counts are entries, those of them that were answered, and those that this host forwards.
type counts struct{ entries, answered, forwarded uint32 }

func (c counts) with(answered, forwarded bool) counts {
	c.entries++
	if answered {
		c.answered++
	}
	if forwarded {
		c.forwarded++
	}
	return c
}

// origin is a source as it is looked up.
type origin struct {
	address address
	zone    uint16
}

func originOf(s policy.Source) origin { return origin{addressOf(s.Prefix.Addr()), s.Zone} }

// flowOf is a class of one source's flows.
type flowOf struct {
	source origin
	class  policy.FlowClass
}

func (k *look) reset(o ScanOptions) {
	clear(k.flows)
	clear(k.hosts)
	clear(k.classes)
	*k = look{own: newPrefixSet(o.Own), inside: newPrefixSet(o.Inside), flows: k.flows, hosts: k.hosts, classes: k.classes}
	if len(o.Own) == 0 {
		return
	}
	k.left = lookSize
	if k.flows == nil {
		k.flows, k.hosts = make(map[flowOf]counts), make(map[origin]counts)
		k.classes = make(map[policy.FlowClass]classLook)
	}
	if len(o.Closer) > 0 {
		k.peers = make(map[origin][]netip.Addr)
	}
	for _, s := range o.Closer {
		k.peers[originOf(s)] = nil // which is to be told from no entry at all
	}
}

// at takes an entry in.
func (k *look) at(e *entry, source origin, class policy.Class) {
	answered := class > policy.HalfOpen
	if k.peers != nil && answered {
		k.peer(source, e.orig.dst)
	}
	if k.left == 0 {
		return
	}
	k.left--
	role := roleOf(e, k.own, k.inside)
	k.roles[role]++
	if class != policy.Assured && (e.orig.proto == protoTCP || e.orig.proto == protoUDP) {
		k.count(e, role, class)
	}
	if !k.inside.contains(source.address) {
		return
	}
	k.hosts[source] = k.hosts[source].with(answered, role.Forwarded())
	key := flowOf{source, e.flowClass()}
	k.flows[key] = k.flows[key].with(answered, false)
}

// peer notes who answered a source.
func (k *look) peer(source origin, to address) {
	known, wanted := k.peers[source]
	if addr := to.netip(); wanted && len(known) < policy.MostPeers && !slices.Contains(known, addr) {
		k.peers[source] = append(known, addr)
	}
}

// flowClass is the class that an entry is of.
func (e *entry) flowClass() policy.FlowClass {
	class := policy.FlowClass{Protocol: e.orig.proto}
	if e.orig.proto == protoTCP || e.orig.proto == protoUDP {
		class.Port = e.orig.dstPort
	}
	return class
}

// classLook is a look at a class under way. Whom most of what passes asks is found by majority vote (Boyer and Moore,
// MJRTY, 1981): who has so many more votes than all others together.
type classLook struct {
	policy.ClassLook
	to    address
	votes int
}

// vote takes in whom an entry asks.
func (c *classLook) vote(to address) {
	if c.votes == 0 {
		c.to = to
	}
	if c.to == to {
		c.votes++
	} else {
		c.votes--
	}
}

// count takes an entry in that is not assured.
func (k *look) count(e *entry, role policy.Role, class policy.Class) {
	c := k.classes[e.flowClass()]
	c.Entries++
	translated, answered := e.translated(), class == policy.Replied || class == policy.HalfOpen
	switch {
	case role == policy.Local && !translated:
		c.Local++
	case role == policy.Inward && translated && answered:
		c.Translated++
	case role.Forwarded() && role != policy.Outward && !translated && answered:
		c.Passing++
		c.vote(e.orig.dst)
	}
	k.classes[e.flowClass()] = c
}

// told returns the largest classes of entries that are not assured.
func (k *look) told() (list []policy.ClassLook) {
	for class, c := range k.classes {
		if c.Entries >= leastOfClass {
			if c.FlowClass = class; c.Passing > 0 && 2*c.votes >= c.Passing {
				c.To = c.to.netip()
			}
			list = append(list, c.ClassLook)
		}
	}
	slices.SortFunc(list, func(a, b policy.ClassLook) int {
		return cmp.Or(b.Entries-a.Entries, int(a.Protocol)-int(b.Protocol), int(a.Port)-int(b.Port))
	})
	return list[:min(len(list), mostClasses)]
}

// tell writes what was found into what sources hold.
func (k *look) tell(list []policy.Holding) {
	told := make(map[origin]*policy.Look)
	for i := range list {
		source := originOf(list[i].Source())
		host, found := k.hosts[source]
		peers, closer := k.peers[source]
		if !found || host.entries < leastLook && !closer {
			continue
		}
		list[i].Look = &policy.Look{Entries: int(host.entries), Answered: int(host.answered),
			Forwarded: int(host.forwarded), Peers: peers, Closer: closer}
		told[source] = list[i].Look
	}
	if len(told) == 0 {
		return
	}
	for key, flow := range k.flows {
		if host := told[key.source]; host != nil {
			host.Flows = append(host.Flows, policy.FlowCount{FlowClass: key.class, Entries: int(flow.entries),
				Answered: int(flow.answered)})
		}
	}
	for _, host := range told {
		slices.SortFunc(host.Flows, func(a, b policy.FlowCount) int {
			return cmp.Or(b.Entries-a.Entries, int(a.Protocol)-int(b.Protocol), int(a.Port)-int(b.Port))
		})
		host.Flows = slices.Clone(host.Flows[:min(len(host.Flows), mostLook)])
	}
}
