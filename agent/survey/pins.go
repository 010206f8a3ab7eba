package survey

import (
	"encoding/binary"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/xt"
	"golang.org/x/sys/unix"
)

// pins is what is known for sure about the packets that come to some point of a rule. The zero value
// knows nothing: any packet can.
type pins struct {
	protocols []uint8 // IP protocol numbers; nil means any
	ports     []ports // destination ports, where the protocol has some; nil means any
	local     bool    // sent to an address of this host, so neither multicast nor broadcast
}

// ports is a range of ports, both ends included.
type ports struct{ first, last uint16 }

// protocol says whether a packet of that protocol can come.
func (p pins) protocol(number uint8) bool {
	return p.protocols == nil || slices.Contains(p.protocols, number)
}

// anyPort says whether a packet to one of the ports from first to last can come.
func (p pins) anyPort(first, last uint16) bool {
	return p.ports == nil || slices.ContainsFunc(p.ports, func(r ports) bool { return r.first <= last && first <= r.last })
}

// and returns what is known where both p and q are.
func (p pins) and(q pins) pins {
	both := pins{protocols: p.protocols, ports: p.ports, local: p.local || q.local}
	if p.protocols == nil {
		both.protocols = q.protocols
	} else if q.protocols != nil {
		both.protocols = slices.DeleteFunc(slices.Clone(p.protocols), func(n uint8) bool { return !q.protocol(n) })
	}
	if p.ports == nil {
		both.ports = q.ports
	} else if q.ports != nil {
		both.ports = []ports{}
		for _, a := range p.ports {
			for _, b := range q.ports {
				if r := (ports{max(a.first, b.first), min(a.last, b.last)}); r.first <= r.last {
					both.ports = append(both.ports, r)
				}
			}
		}
	}
	return both
}

// loaded is what the register that was written last holds.
type loaded struct {
	what     subject
	register uint32
}

type subject uint8

const (
	something subject = iota
	theFamily         // NFPROTO_IPV4 or NFPROTO_IPV6
	theProtocol
	thePort
	theKind // of the destination address: RTN_LOCAL and so on
)

// reader follows the matches of one rule. It knows one register at a time, which is how nft writes
// them: load, then compare. Whatever it can't read it takes for a match that lets everything through.
type reader struct {
	rules *ruleset
	table tableKey
	pins  pins
	held  loaded
	ipv4  bool // the packet is IPv4: fields of its header are where they should be
}

// match takes the next expression of a rule into account.
func (r *reader) match(e expression) {
	switch e.name {
	case "counter", "limit", "log", "quota", "last": // write no register
	case "cmp":
		var c expr.Cmp
		if r.read(e, &c) {
			r.compare(c.Register, c.Op, c.Data)
		}
	case "range":
		var n expr.Range
		if r.read(e, &n) && n.Op == expr.CmpOpEq {
			r.compare(n.Register, expr.CmpOpGte, n.FromData)
			r.compare(n.Register, expr.CmpOpLte, n.ToData)
		}
	case "lookup":
		var l expr.Lookup
		if r.read(e, &l) && !l.Invert && !l.IsDestRegSet {
			r.lookUp(l)
		} else {
			r.held = loaded{}
		}
	case "match":
		var m expr.Match
		if r.read(e, &m) {
			r.extension(m.Info)
		}
	default:
		r.held = r.load(e)
	}
}

// load says what an expression that may write a register leaves there.
func (r *reader) load(e expression) loaded {
	switch e.name {
	case "meta":
		var m expr.Meta
		switch {
		case !r.read(e, &m) || m.SourceRegister:
		case m.Key == expr.MetaKeyL4PROTO:
			return loaded{theProtocol, m.Register}
		case m.Key == expr.MetaKeyNFPROTO:
			return loaded{theFamily, m.Register}
		}
	case "payload":
		var p expr.Payload
		if r.read(e, &p) {
			return loaded{r.field(p), p.DestRegister}
		}
	case "fib":
		var f expr.Fib
		if r.read(e, &f) && f.ResultADDRTYPE && f.FlagDADDR {
			return loaded{theKind, f.Register}
		}
	}
	return loaded{}
}

func (r *reader) read(e expression, to expr.Any) bool {
	return expr.Unmarshal(byte(r.table.family), e.data, to) == nil
}

// field says which field of the packet a payload expression loads: RFC 791, 3.1 and RFC 9293, 3.1.
func (r *reader) field(p expr.Payload) subject {
	v4 := r.ipv4 || r.table.family == nftables.TableFamilyIPv4
	switch {
	case p.OperationType != expr.PayloadLoad:
	case p.Base == expr.PayloadBaseTransportHeader && p.Offset == 2 && p.Len == 2:
		return thePort
	case p.Base == expr.PayloadBaseNetworkHeader && p.Offset == 9 && p.Len == 1 && v4:
		return theProtocol
	}
	return something
}

// compare takes a comparison with what a register holds into account.
func (r *reader) compare(register uint32, op expr.CmpOp, data []byte) {
	if register != r.held.register {
		return
	}
	switch {
	case r.held.what == thePort && len(data) == 2:
		switch port := binary.BigEndian.Uint16(data); op {
		case expr.CmpOpEq:
			r.pins = r.pins.and(pins{ports: []ports{{port, port}}})
		case expr.CmpOpGte:
			r.pins = r.pins.and(pins{ports: []ports{{port, 1<<16 - 1}}})
		case expr.CmpOpLte:
			r.pins = r.pins.and(pins{ports: []ports{{0, port}}})
		default:
		}
	case op != expr.CmpOpEq:
	case r.held.what == theProtocol && len(data) == 1:
		r.pins = r.pins.and(pins{protocols: []uint8{data[0]}})
	case r.held.what == theFamily && len(data) == 1:
		r.ipv4 = r.ipv4 || data[0] == unix.NFPROTO_IPV4
	case r.held.what == theKind && len(data) == 4 && binary.NativeEndian.Uint32(data) == unix.RTN_LOCAL:
		r.pins.local = true
	}
}

// lookUp takes a set that must hold what a register holds into account, as it is now.
func (r *reader) lookUp(l expr.Lookup) {
	if l.SourceRegister != r.held.register || r.held.what != thePort && r.held.what != theProtocol {
		return
	}
	table := &nftables.Table{Family: r.table.family, Name: r.table.name}
	set, err := r.rules.conn.GetSetByName(table, l.SetName)
	if err != nil || set.IsMap || set.Concatenation || r.held.what == theProtocol && set.Interval {
		return
	}
	elements, err := r.rules.conn.GetSetElements(set)
	if err != nil {
		return
	}
	if r.held.what == thePort {
		if list, ok := portsOf(elements, set.Interval); ok {
			r.pins = r.pins.and(pins{ports: list})
		}
		return
	}
	protocols := []uint8{}
	for _, e := range elements {
		if len(e.Key) != 1 {
			return
		}
		protocols = append(protocols, e.Key[0])
	}
	r.pins = r.pins.and(pins{protocols: protocols})
}

// portsOf reads a set of ports. In a set of intervals each element begins one or ends the one before
// it, itself not included.
func portsOf(elements []nftables.SetElement, intervals bool) (list []ports, ok bool) {
	list = []ports{}
	for _, e := range elements {
		if len(e.Key) != 2 || e.KeyEnd != nil {
			return nil, false
		}
	}
	slices.SortFunc(elements, func(a, b nftables.SetElement) int { return slices.Compare(a.Key, b.Key) })
	for i, e := range elements {
		r := ports{first: binary.BigEndian.Uint16(e.Key)}
		switch r.last = r.first; {
		case e.IntervalEnd:
			continue
		case intervals && i+1 < len(elements):
			r.last = max(r.first, binary.BigEndian.Uint16(elements[i+1].Key)-1)
		case intervals:
			r.last = 1<<16 - 1
		}
		list = append(list, r)
	}
	return list, true
}

// extension takes a match of iptables into account; see include/uapi/linux/netfilter/xt_tcpudp.h and
// xt_addrtype.h.
func (r *reader) extension(info xt.InfoAny) {
	const destinationInverted = 1 << 1 // XT_ADDRTYPE_INVERT_DEST
	switch m := info.(type) {
	case *xt.Tcp:
		if m.InvFlags&xt.TcpInvDestPorts == 0 {
			r.pins = r.pins.and(pins{ports: []ports{{m.DstPorts[0], m.DstPorts[1]}}})
		}
	case *xt.Udp:
		if m.InvFlags&xt.UdpInvDestPorts == 0 {
			r.pins = r.pins.and(pins{ports: []ports{{m.DstPorts[0], m.DstPorts[1]}}})
		}
	case *xt.AddrTypeV1:
		if m.Dest == 1<<unix.RTN_LOCAL && m.Flags&destinationInverted == 0 {
			r.pins.local = true
		}
	}
}
