package nft

import (
	"encoding/binary"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"ctguard/policy"
)

// flowSet is a set of clients by address and port, to which packets add.
type flowSet struct {
	name   string
	proto  policy.Protocol
	v6     bool
	life   time.Duration // how long after the last packet
	delete bool          // a packet takes its client out instead
}

// Bounds of a flow set. A flow that is silent for longer is forgotten, as one that has no room. UDP's are those that
// conntrack itself would remember for about as long.
const (
	flowLife    = 2 * time.Hour
	closingLife = 10 * time.Second
	udpLife     = 3 * time.Minute
	onceLife    = time.Minute
	flowSetSize = 1 << 15
)

// sets returns where a service's flows are remembered, and besides those of TCP connections that are being closed, or
// who has sent a UDP datagram.
func (f forwarded) sets() (flows, other flowSet) {
	v6, proto := f.selector.Local.Addr().Is6(), f.selector.Protocol
	if proto == policy.UDP {
		return flowSet{f.counter("flows"), proto, v6, udpLife, false}, flowSet{f.counter("once"), proto, v6, onceLife, false}
	}
	return flowSet{f.counter("flows"), proto, v6, flowLife, false},
		flowSet{f.counter("closing"), proto, v6, closingLife, false}
}

// without is the set as one that packets take clients out of.
func (s flowSet) without() flowSet {
	s.delete = true
	return s
}

// key loads a client's address and port.
func (s side) key(set flowSet) statement {
	c, next := s.loadAddr(set.v6), uint32(regNext)
	if set.v6 {
		next = unix.NFT_REG32_04
	}
	port := loadHeader(expr.PayloadBaseTransportHeader, s.th, 2)
	port.DestRegister = next
	c.exprs = append(c.exprs, port)
	c.text += " . " + string(set.proto) + " " + s.port
	c.l4 = ipProtocols[set.proto]
	return c
}

// remember adds a packet's client on side s to a set, or takes it out.
func (s side) remember(set flowSet) statement {
	c := s.key(set)
	const deletes = 2 // NFT_DYNSET_OP_DELETE
	op, word := uint32(unix.NFT_DYNSET_OP_UPDATE), "update"
	if set.delete {
		op, word = deletes, "delete"
	}
	c.text = fmt.Sprintf("%s @%s { %s }", word, set.name, c.text)
	c.exprs = append(c.exprs, &expr.Dynset{SrcRegKey: reg, SetName: set.name, Operation: op})
	return c
}

// known matches packets whose client on side s is in a set.
func (s side) known(set flowSet) statement {
	c := s.key(set)
	c.text += " @" + set.name
	c.exprs = append(c.exprs, &expr.Lookup{SourceRegister: reg, SetName: set.name})
	return c
}

// unknown matches packets whose client on side s is not in a set.
func (s side) unknown(set flowSet) statement {
	c := s.key(set)
	c.text += " != @" + set.name
	c.exprs = append(c.exprs, &expr.Lookup{SourceRegister: reg, SetName: set.name, Invert: true})
	return c
}

// keyTypes are the parts of an element's key.
func (s flowSet) keyTypes() []nftables.SetDatatype {
	return []nftables.SetDatatype{addressType(s.v6), nftables.TypeInetService}
}

// flowSet describes a flow set to the kernel.
func (b *batch) flowSet(s flowSet) *nftables.Set {
	return &nftables.Set{Table: b.table(), Name: s.name, Dynamic: true, Size: flowSetSize, HasTimeout: true,
		Timeout: s.life, KeyType: nftables.MustConcatSetType(s.keyTypes()...), Concatenation: true}
}

// flowSets returns the sets that a ruleset needs, by name.
func (r *ruleset) flowSets() map[string]flowSet {
	list := map[string]flowSet{}
	for _, f := range r.forwardedOf() {
		if f.followed() {
			flows, other := f.sets()
			list[flows.name], list[other.name] = flows, other
		}
	}
	return list
}

// changeFlowSets adds and deletes flow sets. It comes after the rules that used them are gone.
func (b *batch) changeFlowSets(have, want map[string]flowSet) {
	for _, name := range slices.Sorted(maps.Keys(have)) {
		if _, ok := want[name]; !ok {
			b.conn.DelSet(b.flowSet(have[name]))
			b.note(nil)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(want)) {
		if _, ok := have[name]; !ok {
			b.note(b.conn.AddSet(b.flowSet(want[name]), nil))
		}
	}
}

// Ending returns the forwarded services that are untracked and would be no longer if d were applied, with the
// clients that have flows to them, as far as that is known; see [policy.Selector.Forwarded].
func (t *Table) Ending(d Desired) (ending map[policy.Selector][]netip.AddrPort, err error) {
	if t.have == nil || t.broken {
		return nil, nil
	}
	defer t.socket.asks(answerWithin)(&err)
	still := map[policy.Selector]bool{}
	for _, n := range d.Posture.Notrack {
		still[n.Selector] = n.Stage >= policy.Trial
	}
	for _, f := range t.have.forwardedOf() {
		if still[f.selector] || !f.followed() {
			continue
		}
		flows, _ := f.sets()
		elements, err := t.elements(flows.name)
		if err != nil {
			return ending, err
		}
		if ending == nil {
			ending = map[policy.Selector][]netip.AddrPort{}
		}
		for _, e := range elements {
			if client, ok := clientOf(e.Key, flows.v6); ok {
				ending[f.selector] = append(ending[f.selector], client)
			}
		}
	}
	return ending, nil
}

// clientOf reads an element's key.
func clientOf(key []byte, v6 bool) (netip.AddrPort, bool) {
	length := 4
	if v6 {
		length = 16
	}
	if len(key) < length+2 {
		return netip.AddrPort{}, false
	}
	addr, ok := netip.AddrFromSlice(key[:length])
	return netip.AddrPortFrom(addr, binary.BigEndian.Uint16(key[length:])), ok
}
