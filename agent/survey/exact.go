package survey

import (
	"encoding/binary"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// A destination prefix that holds a whole family says no more than that the packet is of it.
var (
	anyIPv4 = netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	anyIPv6 = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
)

// exactReader follows a rule like [reader], but the other way round: what it can't read makes the rule one that
// matches only some of the packets, or that does with them nobody knows what. So what it calls exact can be repeated.
type exactReader struct {
	exactRule
	rules *ruleset
	at    chainKey
	held  [registers]field
}

// field is what a register holds: some bytes of the packet or about it, or a constant.
type field struct {
	what fieldKind
	mask []byte
	data []byte // of a constant
}

type fieldKind uint8

const (
	unknownField fieldKind = iota
	constantField
	familyField
	protocolField
	portField
	srcField4
	dstField4
	srcField6
	dstField6
	inIndexField
	outIndexField
	inNameField
	outNameField
	dstTypeField
	srcTypeField
	stateField // of the connection
)

// readExact reads a rule.
func (r *ruleset) readExact(at chainKey, expressions []byte) exactRule {
	m := exactReader{rules: r, at: at}
	m.exact, m.where = true, at.where()
	switch at.table.family {
	case nftables.TableFamilyIPv4:
		m.dst = anyIPv4
	case nftables.TableFamilyIPv6:
		m.dst = anyIPv6
	default:
	}
	for _, element := range attributes(expressions) {
		m.expression(text(attribute(element, unix.NFTA_EXPR_NAME)), attribute(element, unix.NFTA_EXPR_DATA))
	}
	return m.exactRule
}

// vague notes that something is not known.
func (m *exactReader) vague() { m.exact = false }

func (m *exactReader) expression(name string, b []byte) {
	switch name {
	case "counter", "log", "last":
	case "meta":
		m.meta(b)
	case "payload":
		m.payload(b)
	case "bitwise":
		m.bitwise(b)
	case "cmp":
		held := m.register(number(b, unix.NFTA_CMP_SREG))
		m.compare(held, number(b, unix.NFTA_CMP_OP), attribute(attribute(b, unix.NFTA_CMP_DATA), unix.NFTA_DATA_VALUE))
	case "range":
		m.between(b)
	case "lookup":
		m.lookUp(b)
	case "fib":
		m.fib(b)
	case "immediate":
		m.immediate(b)
	case "nat":
		m.nat(b)
	case "match":
		m.match(extension(b))
	case "target":
		m.target(extension(b))
	case "ct":
		m.connection(b)
	case "masq":
		m.verdict, m.hides = diverted, true
	case "redir", "tproxy", "reject", "queue", "synproxy":
		m.verdict, m.refuses = diverted, name == "reject"
	default:
		m.vague()
		m.held = [registers]field{}
		if m.verdict == goesOnHere && name != "limit" && name != "socket" && name != "rt" &&
			name != "byteorder" && name != "quota" && name != "notrack" && name != "objref" && name != "dynset" {
			m.verdict = scattered
		}
	}
}

// connection reads what a rule asks of the connection. Untracked packets have none, and of all that can be asked for
// only a state (nft_ct_get_eval in net/netfilter/nft_ct.c): a rule that asks for anything else doesn't match them.
func (m *exactReader) connection(b []byte) {
	m.held = [registers]field{}
	switch {
	case attribute(b, unix.NFTA_CT_DREG) == nil:
		m.vague()
	case number(b, unix.NFTA_CT_KEY) == unix.NFT_CT_STATE:
		m.load(number(b, unix.NFTA_CT_DREG), field{what: stateField})
	default:
		m.vague()
		m.tracked = true
	}
}

func (m *exactReader) register(number uint32) field {
	if s := slot(number); s >= 0 && s < registers {
		return m.held[s]
	}
	return field{}
}

func (m *exactReader) load(number uint32, f field) {
	s := slot(number)
	if s < 0 || s >= registers {
		m.vague()
		return
	}
	for i := s; i < min(s+4, registers); i++ {
		m.held[i] = field{}
	}
	m.held[s] = f
}

func (m *exactReader) meta(b []byte) {
	if attribute(b, unix.NFTA_META_SREG) != nil {
		return // a mark, for one; what reads it is not read here
	}
	kinds := map[uint32]fieldKind{unix.NFT_META_L4PROTO: protocolField, unix.NFT_META_NFPROTO: familyField,
		unix.NFT_META_IIF: inIndexField, unix.NFT_META_OIF: outIndexField, unix.NFT_META_IIFNAME: inNameField,
		unix.NFT_META_OIFNAME: outNameField}
	m.load(number(b, unix.NFTA_META_DREG), field{what: kinds[number(b, unix.NFTA_META_KEY)]})
}

// payload loads a field: RFC 791, 3.1; RFC 8200, 3.
func (m *exactReader) payload(b []byte) {
	if attribute(b, unix.NFTA_PAYLOAD_SREG) != nil {
		m.verdict = scattered
		return
	}
	offset, length := int(number(b, unix.NFTA_PAYLOAD_OFFSET)), int(number(b, unix.NFTA_PAYLOAD_LEN))
	var f field
	ipv6 := m.isFamily(false)
	switch base := number(b, unix.NFTA_PAYLOAD_BASE); {
	case base == unix.NFT_PAYLOAD_TRANSPORT_HEADER && offset == 2 && length == 2:
		f.what = portField
	case base != unix.NFT_PAYLOAD_NETWORK_HEADER:
	case !ipv6 && offset == 9 && length == 1:
		f.what = protocolField
	case !ipv6 && offset == 12 && length <= 4:
		f.what = srcField4
	case !ipv6 && offset == 16 && length <= 4:
		f.what = dstField4
	case ipv6 && offset == 8 && length <= 16:
		f.what = srcField6
	case ipv6 && offset == 24 && length <= 16:
		f.what = dstField6
	}
	m.load(number(b, unix.NFTA_PAYLOAD_DREG), f)
}

// isFamily says whether the packet is IPv4, or else IPv6, as far as the rule has asked.
func (m *exactReader) isFamily(v4 bool) bool {
	return m.dst.IsValid() && m.dst.Addr().Is4() == v4
}

func (m *exactReader) bitwise(b []byte) {
	f := m.register(number(b, unix.NFTA_BITWISE_SREG))
	mask := attribute(attribute(b, unix.NFTA_BITWISE_MASK), unix.NFTA_DATA_VALUE)
	xor := attribute(attribute(b, unix.NFTA_BITWISE_XOR), unix.NFTA_DATA_VALUE)
	if mask == nil || slices.ContainsFunc(xor, func(x byte) bool { return x != 0 }) || f.mask != nil {
		f = field{}
	}
	f.mask = mask
	m.load(number(b, unix.NFTA_BITWISE_DREG), f)
}

// compare takes a comparison into account.
func (m *exactReader) compare(held field, op uint32, data []byte) {
	switch {
	case held.what == stateField:
		m.compareState(held, op, data)
	case op == unix.NFT_CMP_EQ:
		if !m.equals(held, data) {
			m.vague()
		}
	case held.what == portField && held.mask == nil && len(data) == 2 && op == unix.NFT_CMP_GTE:
		m.flowMatch = m.and(flowMatch{exact: true, ports: []ports{{binary.BigEndian.Uint16(data), 1<<16 - 1}}})
	case held.what == portField && held.mask == nil && len(data) == 2 && op == unix.NFT_CMP_LTE:
		m.flowMatch = m.and(flowMatch{exact: true, ports: []ports{{0, binary.BigEndian.Uint16(data)}}})
	case op == unix.NFT_CMP_NEQ && (held.what == inNameField || held.what == inIndexField) && held.mask == nil:
		m.other(deviceOf(held, data), &m.notIn)
	case op == unix.NFT_CMP_NEQ && (held.what == outNameField || held.what == outIndexField) && held.mask == nil:
		m.other(deviceOf(held, data), &m.notOut)
	default:
		m.vague()
	}
}

// compareState reads "ct state" with one state or several, and what is none of them: they are compared as one, or
// the bits of several with 0.
func (m *exactReader) compareState(held field, op uint32, data []byte) {
	states, same := data, uint32(unix.NFT_CMP_EQ)
	if held.mask != nil {
		if states, same = held.mask, unix.NFT_CMP_NEQ; slices.ContainsFunc(data, func(x byte) bool { return x != 0 }) {
			m.vague()
			return
		}
	}
	if len(states) != 4 || op != unix.NFT_CMP_EQ && op != unix.NFT_CMP_NEQ {
		m.vague()
		return
	}
	m.inStates(binary.NativeEndian.Uint32(states), op != same)
}

// inStates takes into account that only packets of some states are matched, or of all others.
func (m *exactReader) inStates(states uint32, others bool) {
	const all = ctInvalid | ctEstablished | ctRelated | ctNew | ctUntracked
	if others {
		states = all &^ states
	}
	m.flowMatch = m.and(flowMatch{exact: true, states: states & all, never: states&all == 0})
}

// other notes an interface that is excluded.
func (m *exactReader) other(device string, where *string) {
	if device == "" || *where != "" {
		m.vague()
		return
	}
	*where = device
}

// equals takes an equality into account, if it can.
func (m *exactReader) equals(held field, data []byte) bool {
	if held.mask != nil && (held.what < srcField4 || held.what > dstField6) {
		return false
	}
	restrict := flowMatch{exact: true}
	switch held.what {
	case familyField:
		restrict.dst = anyIPv6
		if len(data) == 1 && data[0] == unix.NFPROTO_IPV4 {
			restrict.dst = anyIPv4
		}
	case protocolField:
		if len(data) != 1 {
			return false
		}
		restrict.protocol = data[0]
	case portField:
		if len(data) != 2 {
			return false
		}
		port := binary.BigEndian.Uint16(data)
		restrict.ports = []ports{{port, port}}
	case srcField4, srcField6:
		restrict.src = prefixOf(held, data)
		restrict.exact = restrict.src.IsValid()
	case dstField4, dstField6:
		restrict.dst = prefixOf(held, data)
		restrict.exact = restrict.dst.IsValid()
	case inNameField, inIndexField:
		restrict.in = deviceOf(held, data)
		restrict.exact = restrict.in != ""
	case outNameField, outIndexField:
		restrict.out = deviceOf(held, data)
		restrict.exact = restrict.out != ""
	case dstTypeField, srcTypeField:
		if len(data) != 4 || binary.NativeEndian.Uint32(data) != unix.RTN_LOCAL {
			return false
		}
		restrict.local, restrict.srcLocal = held.what == dstTypeField, held.what == srcTypeField
	default:
		return false
	}
	m.flowMatch = m.and(restrict)
	return true
}

// prefixOf is the prefix that an address is compared with; not valid where it is no prefix. nft loads no more bytes of
// an address than it compares.
func prefixOf(f field, data []byte) netip.Prefix {
	full := make([]byte, 4)
	if f.what == srcField6 || f.what == dstField6 {
		full = make([]byte, 16)
	}
	if len(data) == 0 || len(data) > len(full) || f.mask != nil && len(f.mask) != len(data) {
		return netip.Prefix{}
	}
	copy(full, data)
	bits := 8 * len(data)
	if f.mask != nil {
		ones, size := net.IPMask(f.mask).Size()
		if size == 0 {
			return netip.Prefix{}
		}
		bits = ones
	}
	addr, _ := netip.AddrFromSlice(full)
	return netip.PrefixFrom(addr, bits)
}

// deviceOf is the interface that is meant; empty for patterns and for one that is not there.
func deviceOf(f field, data []byte) string {
	if f.what == inIndexField || f.what == outIndexField {
		if len(data) != 4 {
			return ""
		}
		device, err := net.InterfaceByIndex(int(binary.NativeEndian.Uint32(data)))
		if err != nil {
			return ""
		}
		return device.Name
	}
	name, _, ended := strings.Cut(string(data), "\x00")
	if !ended && len(data) < unix.IFNAMSIZ {
		return "" // a pattern
	}
	return name
}

func (m *exactReader) between(b []byte) {
	from := attribute(attribute(b, unix.NFTA_RANGE_FROM_DATA), unix.NFTA_DATA_VALUE)
	to := attribute(attribute(b, unix.NFTA_RANGE_TO_DATA), unix.NFTA_DATA_VALUE)
	held := m.register(number(b, unix.NFTA_RANGE_SREG))
	if number(b, unix.NFTA_RANGE_OP) != unix.NFT_RANGE_EQ || held.what != portField || held.mask != nil ||
		len(from) != 2 || len(to) != 2 {
		m.vague()
		return
	}
	r := ports{binary.BigEndian.Uint16(from), binary.BigEndian.Uint16(to)}
	m.flowMatch = m.and(flowMatch{exact: true, ports: []ports{r}})
}

// lookUp reads sets of ports.
func (m *exactReader) lookUp(b []byte) {
	held := m.register(number(b, unix.NFTA_LOOKUP_SREG))
	if held.what == stateField && held.mask == nil && number(b, unix.NFTA_LOOKUP_FLAGS) == 0 {
		set := m.rules.set(m.at.table, text(attribute(b, unix.NFTA_LOOKUP_SET)))
		m.tracked = m.tracked || set.all && set.flags&unix.NFT_SET_INTERVAL == 0 &&
			!slices.ContainsFunc(set.elements, mayBeUntracked)
	}
	if attribute(b, unix.NFTA_LOOKUP_DREG) != nil {
		m.vague()
		m.held = [registers]field{}
		if number(b, unix.NFTA_LOOKUP_DREG) == unix.NFT_REG_VERDICT {
			m.verdict = scattered
		}
		return
	}
	if held.what == outNameField && held.mask == nil && number(b, unix.NFTA_LOOKUP_FLAGS) == 0 {
		set := m.rules.set(m.at.table, text(attribute(b, unix.NFTA_LOOKUP_SET)))
		for _, e := range set.elements {
			if name := deviceOf(held, e.key); set.all && name != "" {
				m.outs = append(m.outs, name)
			}
		}
	}
	// Other sets are not even read: addresses may come and go there all the time.
	if held.what != portField || held.mask != nil || number(b, unix.NFTA_LOOKUP_FLAGS) != 0 {
		m.vague()
		return
	}
	list, _, ok := m.rules.set(m.at.table, text(attribute(b, unix.NFTA_LOOKUP_SET))).ports()
	if !ok {
		m.vague()
		return
	}
	m.flowMatch = m.and(flowMatch{exact: true, ports: list})
}

// mayBeUntracked says whether an element of a set of states may stand for untracked packets.
func mayBeUntracked(e element) bool {
	return e.catchall || e.unclear || len(e.key) != 4 || binary.NativeEndian.Uint32(e.key)&ctUntracked != 0
}

func (m *exactReader) fib(b []byte) {
	f := field{}
	if number(b, unix.NFTA_FIB_RESULT) == unix.NFT_FIB_RESULT_ADDRTYPE {
		switch number(b, unix.NFTA_FIB_FLAGS) {
		case unix.NFTA_FIB_F_DADDR:
			f.what = dstTypeField
		case unix.NFTA_FIB_F_SADDR:
			f.what = srcTypeField
		}
	}
	m.load(number(b, unix.NFTA_FIB_DREG), f)
}

func (m *exactReader) immediate(b []byte) {
	register, data := number(b, unix.NFTA_IMMEDIATE_DREG), attribute(b, unix.NFTA_IMMEDIATE_DATA)
	if register != unix.NFT_REG_VERDICT {
		m.load(register, field{what: constantField, data: slices.Clone(attribute(data, unix.NFTA_DATA_VALUE))})
		return
	}
	verdict := attribute(data, unix.NFTA_DATA_VERDICT)
	m.chain = text(attribute(verdict, unix.NFTA_VERDICT_CHAIN))
	const netfilterDrop, netfilterAccept = 0, 1 // NF_DROP, NF_ACCEPT
	switch int32(number(verdict, unix.NFTA_VERDICT_CODE)) {
	case unix.NFT_JUMP:
		m.verdict = jumped
	case unix.NFT_GOTO:
		m.verdict = wentTo
	case unix.NFT_CONTINUE:
	case netfilterAccept:
		m.verdict = accepted
	case netfilterDrop:
		m.verdict, m.refuses = diverted, true
	default:
		m.verdict = diverted
	}
}

// nat reads a translation.
func (m *exactReader) nat(b []byte) {
	const destinations = 1    // NFT_NAT_DNAT
	const plain = 1<<0 | 1<<1 // NF_NAT_RANGE_MAP_IPS, NF_NAT_RANGE_PROTO_SPECIFIED
	m.verdict, m.hides = scattered, number(b, unix.NFTA_NAT_TYPE) != destinations
	if m.hides || number(b, unix.NFTA_NAT_FLAGS)&^plain != 0 {
		return
	}
	length := 4
	if number(b, unix.NFTA_NAT_FAMILY) == unix.NFPROTO_IPV6 {
		length = 16
	}
	least := m.constant(b, unix.NFTA_NAT_REG_ADDR_MIN, length)
	most := m.constant(b, unix.NFTA_NAT_REG_ADDR_MAX, length)
	if least == nil || most != nil && !slices.Equal(least, most) {
		return
	}
	var port uint16
	if attribute(b, unix.NFTA_NAT_REG_PROTO_MIN) != nil {
		from := m.constant(b, unix.NFTA_NAT_REG_PROTO_MIN, 2)
		if to := m.constant(b, unix.NFTA_NAT_REG_PROTO_MAX, 2); from == nil || to != nil && !slices.Equal(from, to) {
			return
		}
		port = binary.BigEndian.Uint16(from)
	}
	addr, _ := netip.AddrFromSlice(least)
	m.to, m.verdict = netip.AddrPortFrom(addr, port), translated
}

// constant is what a register holds that an attribute names.
func (m *exactReader) constant(b []byte, name uint16, length int) []byte {
	if attribute(b, name) == nil {
		return nil
	}
	if f := m.register(number(b, name)); f.what == constantField && len(f.data) >= length {
		return f.data[:length]
	}
	return nil
}
