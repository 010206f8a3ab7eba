package nft

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"ctguard/policy"
)

// proxiedInside is a forwarded service whose handshakes are answered with SYN cookies.
//
// The SYN goes the way of every other one: the host translates it, and its own rules see it as a new connection on its
// way to the inside host. Behind them it gets back the address that was asked, and is answered with a cookie; its
// entry is never confirmed. The ACK that brings the cookie back belongs to no entry, so that it is not translated and
// comes to this host itself. The connection that is then opened leaves by the output hook with the client's address,
// and is translated there as the host would.
//
// The cookie has neither timestamps, nor what would need them: window scale and SACK. The kernel adapts the timestamps
// of the inside host to the cookie's for as long as there are rules. When they go, the clock of every second
// connection would run backwards for its client, which then drops all that the inside host says.
type proxiedInside struct {
	forwarded
	mss uint16
}

// proxiedInsideOf returns the forwarded services behind synproxy, in a fixed order.
func proxiedInsideOf(p policy.Posture) []proxiedInside {
	var list []proxiedInside
	for _, s := range p.Synproxy {
		if s.Forwarded() {
			list = append(list, proxiedInside{forwarded{selector: s}, p.InsideMSS[s]})
		}
	}
	slices.SortFunc(list, func(a, b proxiedInside) int {
		return strings.Compare(a.selector.String(), b.selector.String())
	})
	return list
}

func (f proxiedInside) counters() []string {
	return []string{f.counter(proxyCompleted), f.counter(proxyDelivered)}
}

// asked matches what clients send, not yet translated or not at all.
func (f proxiedInside) asked() []statement {
	first, last := f.selector.Ports()
	return f.at(destination, source, f.selector.Local, first, last)
}

// comes is asked by way of the interface that clients are behind.
func (f proxiedInside) comes() []statement {
	by := f.selector.Uplink
	if f.selector.Device != "" {
		by = f.selector.Device
	}
	return append(f.asked(), comesBy(by))
}

// returned counts packets that may bring a cookie back, before anything may drop them.
func (f proxiedInside) returned() rule {
	return newRule(append([]statement{ctInvalid()}, append(f.comes(), answersTCP(), fromSomebody(), count(proxyReturned),
		back())...)...)
}

// strays drops what the inside host says to clients of whom conntrack knows nothing: nothing would translate it, so
// that its own address would leave.
func (f proxiedInside) strays() rule {
	return newRule(append([]statement{ctInvalid()}, append(f.answer(), drop())...)...)
}

// takes takes a cookie.
func (f proxiedInside) takes() rule {
	return newRule(append([]statement{ctInvalid()},
		append(f.comes(), answersTCP(), count(proxyChecked), f.cookie())...)...)
}

// cookie hands cookies out and takes them.
func (f proxiedInside) cookie() statement {
	said := policy.Handshake{MSS4: f.mss, MSS6: f.mss}
	list := synproxy(said, f.selector.Local.Addr().Is6())
	return list[len(list)-1]
}

// answers answers what the host has translated and let through.
func (f proxiedInside) answers() rule {
	list := append(f.delivery(), askedAt(f.selector.Local.Addr()), askedPort(f.selector.Port), count(proxySYNs))
	for _, to := range f.translates(destination, f.outside()) {
		list = append(list, to.writes...)
	}
	return newRule(append(list, f.cookie())...)
}

// opens counts the connections that are opened for good cookies, and those that the inside host has accepted: the
// handshake's last packet follows its answer.
func (f proxiedInside) opens() []rule {
	return []rule{
		newRule(append(f.asked(), opensTCP(), fromElsewhere(), count(f.counter(proxyCompleted)), back())...),
		newRule(append(f.asked(), answersTCP(), fromElsewhere(), count(f.counter(proxyDelivered)), back())...),
	}
}

// translated translates the connections that are opened.
func (f proxiedInside) translated() rule {
	return newRule(append(f.asked(), fromElsewhere(), translateTo(f.selector.Inside))...)
}

// proxyInside answers SYNs that are about to be forwarded.
func (b builder) proxyInside() []rule {
	if len(b.inside) == 0 || b.posture.LastCookies {
		return nil
	}
	list := sparesAllowed()
	for _, f := range b.inside {
		list = append(list, f.answers())
	}
	return list
}

// translate translates connections that this host opens in a client's name.
func (b builder) translate() []rule {
	var list []rule
	for _, f := range b.inside {
		list = append(list, f.translated())
	}
	return list
}

// listen looks at what inside hosts say when they accept a connection, as clients see it.
func (b builder) listen() []rule {
	var list []rule
	for _, s := range b.posture.Learn {
		f := forwarded{selector: s}
		list = append(list, newRule(append(f.leaving(), acceptsTCP(), saidBy[familyOf(s)].remember())...))
	}
	return list
}

// familyOf is 0 for a forwarded service of IPv4 and 1 for one of IPv6.
func familyOf(s policy.Selector) int {
	if s.Inside.Addr().Is6() {
		return 1
	}
	return 0
}

// askedAt matches packets of tracked flows that were opened to an address, and askedPort to a port.
func askedAt(addr netip.Addr) statement {
	c := askedElsewhere(addr)
	c.text = strings.Replace(c.text, " != ", " ", 1)
	c.exprs[len(c.exprs)-1] = equal(addr.AsSlice())
	return c
}

func askedPort(port uint16) statement {
	return statement{text: fmt.Sprintf("ct original proto-dst %d", port), exprs: []expr.Any{
		&expr.Ct{Register: reg, Key: expr.CtKeyPROTODST, Direction: 0}, equal(binaryutil.BigEndian.PutUint16(port))}}
}

// translateTo has conntrack translate the destination.
func translateTo(to netip.AddrPort) statement {
	family, name := uint32(unix.NFPROTO_IPV4), "ip"
	if to.Addr().Is6() {
		family, name = unix.NFPROTO_IPV6, "ip6"
	}
	return statement{text: fmt.Sprintf("dnat %s to %s", name, to), exprs: []expr.Any{
		&expr.Immediate{Register: reg, Data: to.Addr().AsSlice()},
		&expr.Immediate{Register: unix.NFT_REG_2, Data: binaryutil.BigEndian.PutUint16(to.Port())},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: family, RegAddrMin: reg, RegProtoMin: unix.NFT_REG_2, Specified: true},
	}}
}

// saidSet remembers which MSS hosts announce, by address and port.
type saidSet struct {
	name string
	v6   bool
}

var saidBy = [2]saidSet{{"said4", false}, {"said6", true}}

// Bounds of such a set. Hosts announce one value or two, so little of it is used.
const (
	saidTimeout = time.Hour
	saidSize    = 1024
)

// keyTypes are the parts of an element's key. The MSS has no type of its own.
func (s saidSet) keyTypes() []nftables.SetDatatype {
	mss := nftables.TypeInteger
	mss.Bytes = 2
	return []nftables.SetDatatype{addressType(s.v6), nftables.TypeInetService, mss}
}

// saidSet describes the set to the kernel.
func (b *batch) saidSet(s saidSet) *nftables.Set {
	return &nftables.Set{Table: b.table(), Name: s.name, KeyType: nftables.MustConcatSetType(s.keyTypes()...),
		Concatenation: true, Dynamic: true, Size: saidSize, HasTimeout: true, Timeout: saidTimeout}
}

// changeSaidSets adds and deletes the sets, which are there while something is learnt. It comes after the rules that
// used them are gone.
func (b *batch) changeSaidSets(have, want bool) {
	for _, s := range saidBy {
		switch {
		case want && !have:
			b.note(b.conn.AddSet(b.saidSet(s), nil))
		case have && !want:
			b.conn.DelSet(b.saidSet(s))
			b.note(nil)
		}
	}
}

// key is what goes into the set, in nft's syntax.
func (s saidSet) key() string {
	return source.loadAddr(s.v6).text + " . tcp sport . tcp option maxseg size"
}

// render writes the set, which is empty at first.
func (s saidSet) render(w *strings.Builder) {
	fmt.Fprintf(w, "\n\tset %s {\n\t\ttypeof %s\n\t\tsize %d\n\t\tflags dynamic,timeout\n\t\ttimeout %s\n\t}\n", s.name,
		s.key(), saidSize, spell(saidTimeout))
}

// remember puts the sender of a SYN-ACK and its MSS into the set. Without the option it doesn't match.
func (s saidSet) remember() statement {
	const maxseg, value = 2, 2 // the option's kind, and where in it the size is: RFC 9293, 3.2
	from := source.loadAddr(s.v6)
	port := loadHeader(expr.PayloadBaseTransportHeader, source.th, 2)
	size := &expr.Exthdr{DestRegister: regNext + 1, Type: maxseg, Offset: value, Len: 2, Op: expr.ExthdrOpTcpopt}
	port.DestRegister = regNext
	if s.v6 {
		port.DestRegister, size.DestRegister = unix.NFT_REG32_04, unix.NFT_REG32_05
	}
	from.l4 = unix.IPPROTO_TCP
	from.text = fmt.Sprintf("update @%s { %s }", s.name, s.key())
	from.exprs = append(from.exprs, port, size, &expr.Dynset{SrcRegKey: reg, SetName: s.name,
		Operation: unix.NFT_DYNSET_OP_UPDATE})
	return from
}

// said returns the smallest MSS that the inside host of each service announced.
func (t *Table) said() (map[policy.Selector]uint16, error) {
	if len(t.have.learn) == 0 {
		return nil, nil
	}
	least := make(map[netip.AddrPort]uint16)
	for _, set := range saidBy {
		elements, err := t.elements(set.name)
		if err != nil {
			return nil, err
		}
		for _, e := range elements {
			host, ok := clientOf(e.Key, set.v6)
			if at := len(host.Addr().AsSlice()) + 4; ok && len(e.Key) >= at+2 {
				size := binary.BigEndian.Uint16(e.Key[at:])
				if was, there := least[host]; !there || size < was {
					least[host] = size
				}
			}
		}
	}
	list := make(map[policy.Selector]uint16)
	for _, s := range t.have.learn {
		if size := least[s.Inside]; size > 0 {
			list[s] = size
		}
	}
	return list, nil
}
