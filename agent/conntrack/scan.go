package conntrack

import (
	"cmp"
	"context"
	"net/netip"
	"slices"
	"time"

	"ctguard/policy"
)

// SampleSize is the number of entries that a sampled scan needs to find every source which holds
// one entry in a hundred: each such source appears about 164 times, and fewer than 120 times with a
// probability below one in a thousand, whatever the size of the table.
const SampleSize = 16384

// What the zero values of [ScanOptions] mean.
const (
	defaultV4Bits     = 32
	defaultV6Bits     = 64
	defaultMaxSources = 1024
)

// maxPorts is how many destination ports a census lists, largest first.
var maxPorts = 64 // tests lower it

// ScanOptions says how much of the table a scan reads and how much of it the census lists.
type ScanOptions struct {
	Limit          int           // entries after which the scan ends as a sample; 0 reads the whole table
	Budget         time.Duration // processor time after which it ends as a sample; 0 means no bound
	V4Bits, V6Bits int           // prefix lengths that make a source; 0 means 32 and 64
	// IPv6 addresses in whose networks of V6Bits each address is a source of its own: a router's in its LAN
	Apart      []netip.Addr
	Own        []netip.Prefix  // this host's own addresses: without them no entry is asked for its role
	Inside     []netip.Prefix  // networks that this host forwards for: their hosts are looked closer at
	Closer     []policy.Source // of them, those of whom it matters who answered
	OneSided   bool            // TCP without answers counts as assured: this host sees one direction of it
	MaxSources int             // sources listed, largest first; 0 means 1024
	Silences   *SilenceOptions // nil to look for no silences; see [policy.Census.Silences]
}

func (o ScanOptions) withDefaults() ScanOptions {
	o.V4Bits, o.V6Bits = prefixBits(o.V4Bits, o.V6Bits)
	if o.MaxSources == 0 {
		o.MaxSources = defaultMaxSources
	}
	return o
}

func prefixBits(v4, v6 int) (int, int) {
	if v4 <= 0 || v4 > 32 {
		v4 = defaultV4Bits
	}
	if v6 <= 0 || v6 > 128 {
		v6 = defaultV6Bits
	}
	return v4, v6
}

// Scan reads the table, or a sample of it, to a census. A scan that its limit or budget ended is not
// an error: the census says that it is not whole. On an error of the kernel or of ctx the census
// holds what had been read, or is nil if nothing could be.
func (t *Table) Scan(ctx context.Context, o ScanOptions) (*policy.Census, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	start := time.Now()
	total, err := t.Count()
	if err != nil {
		return nil, err
	}
	o = o.withDefaults()
	expect := total
	if o.Limit > 0 {
		expect = min(expect, o.Limit)
	}
	y := &t.tally
	y.reset(o, expect)
	if y.silences = nil; o.Silences != nil {
		y.silences = &t.silences
		y.silences.begin(*o.Silences, start)
	}
	y.comebacks = nil
	if t.comebacks.begin(start); len(t.comebacks.taken) > 0 {
		y.comebacks = &t.comebacks
	}
	end, err := t.walk(ctx, part{}, o.Budget, y.add)
	c := y.census()
	c.Total, c.Whole = max(total, c.Seen), end.whole
	c.Time = time.Now()
	c.Took = c.Time.Sub(start)
	if y.silences != nil {
		c.Silences = y.silences.end()
	}
	c.Comebacks = t.comebacks.list()
	return c, err
}

// tally is what a scan counts. It is made once and reset for each scan.
type tally struct {
	options      ScanOptions
	seen, zoned  int
	v4Mask       int
	apart        map[address]bool // networks whose addresses are told apart
	sources      sources
	classes      [policy.NumClasses]int
	protocols    [256]replies
	tcpStates    [256]int
	ports        [numPortTables][]replies
	portsTouched [numPortTables]bool
	oneWay       []policy.OneWayFlow
	look         look
	silences     *silences  // nil unless silences are looked for
	comebacks    *comebacks // nil unless evicted conversations are looked for
}

// mostOneWay is how many one-way flows a census lists: enough to see whether some of them are renewed.
const mostOneWay = 256

// replies counts entries, and of them those that have seen a reply. The two lie side by side, so that
// the second costs no wait for memory of its own.
type replies struct{ entries, replied uint32 }

func (r *replies) add(e *entry) {
	r.entries++
	r.replied += e.status / statusSeenReply % 2
}

// Protocols whose destination port is worth counting, each with a counter for every port. GRE keeps
// its key in the same attribute, which is no port.
const numPortTables = 5

var portProtocols = [numPortTables]uint8{protoTCP, protoUDP, protoSCTP, protoDCCP, protoUDPLite}

// portTable is the index in portProtocols of each protocol, or −1.
var portTable = func() (index [256]int8) {
	for proto := range index {
		index[proto] = int8(slices.Index(portProtocols[:], uint8(proto)))
	}
	return index
}()

func (y *tally) reset(o ScanOptions, expect int) {
	y.options = o
	y.v4Mask = 96 + o.V4Bits
	y.apart = nil
	for _, a := range o.Apart {
		if a.Is6() && !a.Is4In6() {
			if y.apart == nil {
				y.apart = make(map[address]bool)
			}
			y.apart[addressOf(a).mask(o.V6Bits)] = true
		}
	}
	y.sources.reset(expect)
	y.seen, y.zoned = 0, 0
	y.oneWay = nil
	y.look.reset(o)
	y.classes, y.protocols, y.tcpStates = [policy.NumClasses]int{}, [256]replies{}, [256]int{}
	for i := range y.ports {
		if y.portsTouched[i] {
			clear(y.ports[i])
			y.portsTouched[i] = false
		}
	}
}

// add counts one entry and says whether the scan wants another.
func (y *tally) add(e *entry) bool {
	class := e.class(y.options.OneSided)
	y.seen++
	y.classes[class]++
	y.protocols[e.orig.proto].add(e)
	if e.protoInfo == protoInfoTCP {
		y.tcpStates[e.state]++
		if e.status&statusSeenReply == 0 && e.state == tcpEstablished && len(y.oneWay) < mostOneWay {
			y.oneWay = append(y.oneWay, policy.OneWayFlow{ID: e.id(), Left: e.timeout})
		}
	}
	if i := portTable[e.orig.proto]; i >= 0 {
		if y.ports[i] == nil {
			y.ports[i] = make([]replies, 1<<16)
		}
		y.portsTouched[i] = true
		y.ports[i][e.orig.dstPort].add(e)
	}
	if y.silences != nil {
		y.silences.look(e)
	}
	if y.comebacks != nil {
		y.comebacks.look(e)
	}
	source, zone := y.source(e.orig.src), e.zone()
	if zone != 0 {
		y.zoned++
	}
	// What an eviction or a retirement has just let run out is nobody's any more: in a scan that follows at once it would
	// look as if its source had opened it anew.
	if !e.goes() {
		y.look.at(e, origin{source, zone}, class)
		y.sources.add(source, zone, kindOf(e, class))
	}
	return y.seen != y.options.Limit
}

// source folds an address to the prefix that makes a source.
func (y *tally) source(a address) address {
	if a.is4() {
		return a.mask(y.v4Mask)
	}
	network := a.mask(y.options.V6Bits)
	if y.apart != nil && y.apart[network] {
		return a
	}
	return network
}

func (y *tally) census() *policy.Census {
	y.sources.settle()
	c := &policy.Census{
		Seen:      y.seen,
		Zoned:     y.zoned,
		Classes:   y.classes,
		TCPStates: nonZero(y.tcpStates[:]),
		Ports:     y.topPorts(),
		Distinct:  y.sources.used,
		OneWay:    y.oneWay,
		Roles:     y.look.roles,
		Looks:     y.look.told(),

		Protocols:        make(map[uint8]int),
		ProtocolsReplied: make(map[uint8]int),
	}
	for number, n := range y.protocols {
		if n.entries > 0 {
			c.Protocols[uint8(number)] = int(n.entries)
		}
		if n.replied > 0 {
			c.ProtocolsReplied[uint8(number)] = int(n.replied)
		}
	}
	if y.sources.short > 0 {
		c.Distinct = max(y.sources.used, min(y.sources.distinct.estimate(), y.seen))
	}
	c.Sources, c.Rest = y.sources.largest(y.options.MaxSources, y.holding)
	y.look.tell(c.Sources)
	return c
}

func (y *tally) holding(source address) policy.Holding {
	bits := y.options.V6Bits
	switch {
	case source.is4():
		bits = y.options.V4Bits
	case y.apart[source.mask(bits)]:
		bits = 128
	}
	return policy.Holding{Prefix: netip.PrefixFrom(source.netip(), bits)}
}

func (y *tally) topPorts() []policy.PortCount {
	var all []policy.PortCount
	for i, counts := range y.ports {
		if !y.portsTouched[i] {
			continue
		}
		for port, n := range counts {
			if n.entries > 0 {
				all = append(all, policy.PortCount{
					Protocol: portProtocols[i], Port: uint16(port), Entries: int(n.entries), Replied: int(n.replied),
				})
			}
		}
	}
	slices.SortFunc(all, func(a, b policy.PortCount) int {
		return cmp.Or(b.Entries-a.Entries, int(a.Protocol)-int(b.Protocol), int(a.Port)-int(b.Port))
	})
	return slices.Clone(all[:min(len(all), maxPorts)])
}

func nonZero(counts []int) map[uint8]int {
	m := make(map[uint8]int)
	for i, n := range counts {
		if n > 0 {
			m[uint8(i)] = n
		}
	}
	return m
}
