package nft

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"ctguard/policy"
)

// straySet remembers the TCP connections whose packets were dropped as invalid a moment ago, and how many packets each
// lost. The kernel itself adds to it. It is small on purpose: a flood of packets that belong to nothing fills it
// with connections of one packet each, and what goes on for a while finds its way in all the same, because elements end
// soon.
type straySet struct {
	name string
	v6   bool
}

var straySets = [2]straySet{{"strays4", false}, {"strays6", true}}

// A connection that waits for an answer repeats itself after 0.2, 0.6, 1.4 and 3 seconds (RFC 6298, and TCP_RTO_MIN in
// include/net/tcp.h), so its element is renewed.
const (
	strayTimeout = 3 * time.Second
	straySize    = 1024
	strayEvery   = 500 * time.Millisecond // so often at most are the sets read
)

// How many packets of a connection must have been dropped for it to go on in spite of that, and how many may have
// been: what sends faster waits for nothing, so it is a flood.
const (
	fewestStrays = 2
	mostStrays   = 64
)

// keyTypes are the parts of an element's key.
func (s straySet) keyTypes() []nftables.SetDatatype {
	address := addressType(s.v6)
	return []nftables.SetDatatype{address, address, nftables.TypeInetService, nftables.TypeInetService}
}

// straySet describes a set of strays to the kernel.
func (b *batch) straySet(s straySet) *nftables.Set {
	return &nftables.Set{Table: b.table(), Name: s.name, KeyType: nftables.MustConcatSetType(s.keyTypes()...),
		Concatenation: true, Dynamic: true, Size: straySize, HasTimeout: true, Timeout: strayTimeout}
}

// render writes the set, which is empty at first.
func (s straySet) render(w *strings.Builder) {
	fmt.Fprintf(w, "\n\tset %s {\n\t\ttype %s\n\t\tsize %d\n\t\tflags dynamic,timeout\n\t\ttimeout %s\n\t}\n", s.name,
		typeNames(s.keyTypes()), straySize, spell(strayTimeout))
}

// remember puts the packet's connection into the set. When the set is full it doesn't match.
func (s straySet) remember() statement {
	from, to := source.loadAddr(s.v6), destination.loadAddr(s.v6)
	words := s.keyTypes()[0].Bytes / 4
	at := func(e expr.Any, word uint32) expr.Any {
		load := *e.(*expr.Payload)
		load.DestRegister = unix.NFT_REG32_00 + word
		return &load
	}
	port := func(offset uint32) expr.Any { return loadHeader(expr.PayloadBaseTransportHeader, offset, 2) }
	return statement{
		text: fmt.Sprintf("update @%s { %s . %s . tcp sport . tcp dport counter }", s.name, from.text, to.text),
		// What the rules before it tested says nothing here: the protocol is tested by continuesTCP.
		family: from.family,
		exprs: []expr.Any{
			at(from.exprs[0], 0), at(to.exprs[0], words), at(port(source.th), 2*words), at(port(destination.th), 2*words+1),
			&expr.Dynset{SrcRegKey: unix.NFT_REG32_00, SetName: s.name, Operation: unix.NFT_DYNSET_OP_UPDATE,
				Exprs: []expr.Any{&expr.Counter{}}},
		},
	}
}

// rememberStrays are the rules before what is invalid is dropped.
func rememberStrays() []rule {
	list := make([]rule, len(straySets))
	for i, s := range straySets {
		list[i] = newRule(continuesTCP(), s.remember())
	}
	return list
}

// strays is what was last read of the sets.
type strays struct {
	list    []policy.Stray
	at      time.Time
	dropped uint64 // packets that had been dropped by then
}

// readStrays reads the sets if more was dropped since they were read, and not too often.
func (t *Table) readStrays(dropped uint64, now time.Time) ([]policy.Stray, error) {
	last := &t.strays
	if now.Sub(last.at) < strayEvery {
		return last.list, nil
	}
	if dropped == last.dropped {
		last.list = nil
		return nil, nil
	}
	*last = strays{at: now, dropped: dropped}
	for _, s := range straySets {
		elements, err := t.elements(s.name)
		if err != nil {
			return nil, err
		}
		for _, e := range elements {
			if e.Counter != nil && e.Counter.Packets >= fewestStrays && e.Counter.Packets <= mostStrays {
				last.list = append(last.list, s.stray(e.Key))
			}
		}
	}
	return last.list, nil
}

// stray reads an element's key.
func (s straySet) stray(key []byte) policy.Stray {
	n := int(s.keyTypes()[0].Bytes)
	if len(key) < 2*n {
		return policy.Stray{}
	}
	from, _ := netip.AddrFromSlice(key[:n])
	to, _ := netip.AddrFromSlice(key[n : 2*n])
	return policy.Stray{Source: from, Destination: to}
}
