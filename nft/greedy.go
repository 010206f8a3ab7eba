package nft

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"ctguard/policy"
)

// greedySet says of inside hosts that are limited what of theirs is: to which classes, or, where it is about those who
// answered them, to whom it is not. These sets are there only while such a host is limited.
type greedySet struct {
	name  string
	v6    bool
	peers bool
}

// The sets, IPv4 first.
var (
	greedy   = [2]greedySet{{"greedy4", false, false}, {"greedy6", true, false}}
	answered = [2]greedySet{{"answered4", false, true}, {"answered6", true, true}}
)

// greedyElement is one element of such a set: its key as the kernel wants it, and as people read it.
type greedyElement struct {
	key, text string
	element   // of which only the end counts
}

// echoOf is type and code of an echo request: ICMP has no ports, and they are where others have the first of theirs.
func echoOf(protocol uint8) uint16 {
	if protocol == unix.IPPROTO_ICMPV6 {
		return uint16(echoRequest[1].kind) << 8
	}
	return uint16(echoRequest[0].kind) << 8
}

// greedyElements returns the elements of each set that is needed, and the limits that are told by none of them.
func (d Desired) greedyElements(now time.Time) (map[greedySet][]greedyElement, []policy.Limit) {
	sets := make(map[greedySet][]greedyElement)
	var whole []policy.Limit
	add := func(set greedySet, key, text string, until time.Time) {
		sets[set] = append(sets[set], greedyElement{key, text, element{until: until}})
	}
	for _, l := range d.Posture.Limits {
		source := plain(l.Prefix)
		if l.Kind != policy.LimitNew || !source.IsSingleIP() || !l.Until.IsZero() && !l.Until.After(now) {
			whole = append(whole, l)
			continue
		}
		from, i := source.Addr(), 0
		if from.Is6() {
			i = 1
		}
		for _, class := range l.Flows {
			port := class.Port
			if class.Protocol == unix.IPPROTO_ICMP || class.Protocol == unix.IPPROTO_ICMPV6 {
				port = echoOf(class.Protocol)
			}
			key := slices.Concat(from.AsSlice(), []byte{class.Protocol, 0, 0, 0}, binaryutil.BigEndian.PutUint16(port),
				[]byte{0, 0})
			name := fmt.Sprintf("%s . %s . %d", from, protocolName(class.Protocol), port)
			add(greedy[i].in(scopeOf(l)), string(key), name, l.Until)
		}
		for _, to := range l.Peers {
			if to.Is6() == from.Is6() {
				key := slices.Concat(from.AsSlice(), to.AsSlice())
				add(answered[i].in(scopeOf(l)), string(key), fmt.Sprintf("%s . %s", from, to), l.Until)
			}
		}
		if len(l.Flows) == 0 {
			whole = append(whole, l)
		}
	}
	return sets, whole
}

// keyTypes are the parts of an element's key.
func (s greedySet) keyTypes() []nftables.SetDatatype {
	address := addressType(s.v6)
	if s.peers {
		return []nftables.SetDatatype{address, address}
	}
	return []nftables.SetDatatype{address, nftables.TypeInetProto, nftables.TypeInetService}
}

// greedySet describes the set to the kernel.
func (b *batch) greedySet(s greedySet) *nftables.Set {
	return &nftables.Set{Table: b.table(), Name: s.name, HasTimeout: true, Concatenation: true,
		KeyType: nftables.MustConcatSetType(s.keyTypes()...)}
}

// render writes the set.
func (s greedySet) render(w *strings.Builder, elements []greedyElement, now time.Time) {
	fmt.Fprintf(w, "\n\tset %s {\n\t\ttype %s\n\t\tflags timeout\n", s.name, typeNames(s.keyTypes()))
	var list []string
	for _, e := range elements {
		text := e.text
		if !e.until.IsZero() {
			text += " timeout " + spell(max(e.until.Sub(now), time.Millisecond))
		}
		list = append(list, text)
	}
	renderElements(w, list)
}

// matches is what packets of the set's kind match; ICMP by its first two bytes.
func (s greedySet) matches(echo bool) statement {
	load := func(e expr.Any, word uint32) expr.Any {
		switch one := e.(type) {
		case *expr.Payload:
			one.DestRegister = unix.NFT_REG32_00 + word
		case *expr.Meta:
			one.Register = unix.NFT_REG32_00 + word
		}
		return e
	}
	words := uint32(1)
	if s.v6 {
		words = 4
	}
	from, to := source.loadAddr(s.v6), destination.loadAddr(s.v6)
	c := statement{text: from.text, family: from.family, exprs: []expr.Any{load(from.exprs[0], 0)}}
	if s.peers {
		c.text += " . " + to.text
		c.exprs = append(c.exprs, load(to.exprs[0], words))
	} else {
		port := destination
		if echo {
			// The rule tests for ICMP, too, which nft leaves out when it lists a concatenation.
			if port, c.l4 = source, unix.IPPROTO_ICMP; s.v6 {
				c.l4 = unix.IPPROTO_ICMPV6
			}
		}
		c.text += " . meta l4proto . th " + port.port
		c.exprs = append(c.exprs, load(loadMeta(expr.MetaKeyL4PROTO), words),
			load(loadHeader(expr.PayloadBaseTransportHeader, port.th, 2), words+1))
	}
	c.text += " @" + s.name
	c.exprs = append(c.exprs, &expr.Lookup{SourceRegister: unix.NFT_REG32_00, SetName: s.name})
	return c
}

// greedyRules are those of a scope that come before the limits on whole sources.
func (b builder) greedyRules(of scope) (list []rule) {
	for i := range 2 {
		if set := answered[i].in(of); len(b.greedy[set]) > 0 {
			list = append(list, newRule(set.matches(false), back()))
		}
	}
	for i := range 2 {
		if set := greedy[i].in(of); len(b.greedy[set]) > 0 {
			rate := goTo(prefixRate{meters[i].in(of), meters[i].bits()}.chain())
			list = append(list, newRule(set.matches(false), rate), newRule(set.matches(true), rate))
		}
	}
	return list
}

// changeGreedySets adds and deletes sets and elements. It comes after the rules that used them are gone.
func (b *batch) changeGreedySets(have, want map[greedySet][]greedyElement, now time.Time) {
	for _, s := range greedySets(have, want) {
		_, there := have[s]
		_, wanted := want[s]
		switch {
		case there && !wanted:
			b.conn.DelSet(b.greedySet(s))
			b.note(nil)
		case wanted:
			if !there {
				b.note(b.conn.AddSet(b.greedySet(s), nil))
			}
			want[s] = b.changeGreedy(s, have[s], want[s], now)
		}
	}
}

// changeGreedy brings a set from have to want and returns what the kernel then has: where its element is good enough
// or about to end, that stays.
func (b *batch) changeGreedy(s greedySet, have, want []greedyElement, now time.Time) []greedyElement {
	left := make(map[string]*greedyElement, len(want))
	for i := range want {
		left[want[i].key] = &want[i]
	}
	var result []greedyElement
	var remove, add []nftables.SetElement
	for _, old := range have {
		wanted := left[old.key]
		var end *element
		if wanted != nil {
			end = &wanted.element
		}
		if old.stays(end, now) {
			result = append(result, old)
			delete(left, old.key)
		} else if !old.over(now) {
			remove = append(remove, nftables.SetElement{Key: []byte(old.key)})
		}
	}
	for _, key := range slices.Sorted(maps.Keys(left)) {
		e := *left[key]
		one := nftables.SetElement{Key: []byte(key)}
		if !e.until.IsZero() {
			one.Timeout = max(e.until.Sub(now), time.Millisecond)
		}
		add, result = append(add, one), append(result, e)
	}
	b.changeElements(b.greedySet(s), remove, add)
	return result
}
