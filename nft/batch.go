package nft

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/userdata"
)

// batch collects the messages of one atomic change. The library changes the tables, sets and rules it
// is given while it sends them, so each is built afresh.
type batch struct {
	conn    *nftables.Conn
	unowned bool
	created bool
	queued  int
	err     error // the first message that could not be queued: flush would say nothing of it
}

func newBatch(conn *nftables.Conn, unowned bool) *batch {
	return &batch{conn: conn, unowned: unowned}
}

func (b *batch) empty() bool { return b.queued == 0 && b.err == nil }

// note counts a message and keeps the first error.
func (b *batch) note(err error) {
	b.queued++
	if b.err == nil {
		b.err = err
	}
}

// flush sends the batch.
func (b *batch) flush() error {
	err := b.conn.Flush() // also when b.err is set: it empties the library's queue, and sends nothing then
	if b.err != nil {
		err = b.err
	}
	if err != nil {
		return fmt.Errorf("change table inet %s: %w", Name, err)
	}
	return nil
}

func (b *batch) table() *nftables.Table {
	t := &nftables.Table{Name: Name, Family: nftables.TableFamilyINet}
	if !b.unowned {
		t.Flags = nftables.TableFlagOwner
	}
	return t
}

func (b *batch) deleteTable() {
	b.conn.DelTable(b.table())
	b.note(nil)
}

// create makes the whole table.
func (b *batch) create(want *ruleset, now time.Time) {
	b.created = true
	b.conn.AddTable(b.table())
	b.note(nil)
	for _, s := range addressSets() {
		b.note(b.conn.AddSet(b.addressSet(s), nil))
	}
	for _, name := range serviceSets() {
		b.note(b.conn.AddSet(b.serviceSet(name), nil))
	}
	for _, s := range portSets() {
		b.note(b.conn.AddSet(b.portSet(s), nil))
	}
	for _, s := range straySets {
		b.note(b.conn.AddSet(b.straySet(s), nil))
	}
	b.change(&ruleset{}, want, now)
}

// change turns have into want. What refers to a thing goes before the thing does, and comes after it.
// Elements of want become those that the kernel then has.
func (b *batch) change(have, want *ruleset, now time.Time) {
	changed := changedChains(have, want)
	for _, c := range changed {
		b.makeEmpty(have, c)
	}
	b.removeHooks(have, want)
	b.addZones(have, want)
	if have.rate != "" && have.rate != want.rate {
		for _, s := range have.addressSets() {
			if s.kind == metering {
				b.conn.FlushSet(b.addressSet(s)) // an element keeps the rate it was made with
				b.note(nil)
			}
		}
	}
	b.changeCounters(have.counters, want.counters)
	b.changeFlowSets(have.flowSets(), want.flowSets())
	b.changeSaidSets(len(have.learn) > 0, len(want.learn) > 0)
	b.changeGreedySets(have.greedy, want.greedy, now)
	for _, s := range want.addressSets() {
		if s.kind != metering && s.kind != remembering {
			want.addresses[s.name] = b.changeAddresses(s, have.addresses[s.name], want.addresses[s.name], now)
		}
	}
	for _, name := range serviceSets() {
		changeKeys(b, b.serviceSet(name), have.services[name], want.services[name], serviceKey)
	}
	for _, s := range portSets() {
		changeKeys(b, b.portSet(s), have.ports[s.name], want.ports[s.name], binaryutil.BigEndian.PutUint16)
	}
	for _, c := range changed {
		for _, r := range c.rules {
			b.conn.AddRule(b.rule(c.name, r))
			b.note(nil)
		}
	}
}

// changedChains returns the chains of want whose rules are not those of have.
func changedChains(have, want *ruleset) []chain {
	old := map[string]chain{}
	for _, c := range have.chains {
		old[c.name] = c
	}
	var changed []chain
	for _, c := range want.chains {
		was, there := old[c.name]
		if !there || !slices.EqualFunc(was.rules, c.rules, func(x, y rule) bool { return x.text == y.text }) {
			changed = append(changed, c)
		}
	}
	return changed
}

// makeEmpty makes chain c if have lacks it, and takes its rules away if not.
func (b *batch) makeEmpty(have *ruleset, c chain) {
	there := slices.ContainsFunc(have.chains, func(old chain) bool { return old.name == c.name })
	kernel := &nftables.Chain{Table: b.table(), Name: c.name}
	if there {
		b.conn.FlushChain(kernel)
		b.note(nil)
		return
	}
	if c.hook != nil {
		accept := nftables.ChainPolicyAccept
		kernel.Type = c.hook.kind()
		kernel.Hooknum, kernel.Priority, kernel.Policy = c.hook.num, &c.hook.priority, &accept
	}
	b.conn.AddChain(kernel)
	b.note(nil)
}

// removeHooks deletes base chains that want lacks.
func (b *batch) removeHooks(have, want *ruleset) {
	for _, old := range have.chains {
		if old.hook == nil || slices.ContainsFunc(want.chains, func(c chain) bool { return c.name == old.name }) {
			continue
		}
		kernel := &nftables.Chain{Table: b.table(), Name: old.name}
		b.conn.FlushChain(kernel)
		b.conn.DelChain(kernel)
		b.note(nil)
	}
}

// changeCounters adds and deletes named counters. It comes after the rules that used them are gone.
func (b *batch) changeCounters(have, want []string) {
	for _, name := range have {
		if !slices.Contains(want, name) {
			b.conn.DeleteObject(&nftables.CounterObj{Table: b.table(), Name: name})
			b.note(nil)
		}
	}
	for _, name := range want {
		if !slices.Contains(have, name) {
			b.conn.AddObj(&nftables.CounterObj{Table: b.table(), Name: name})
			b.note(nil)
		}
	}
}

// addressSet describes an address set to the kernel.
func (b *batch) addressSet(s addressSet) *nftables.Set {
	set := &nftables.Set{Table: b.table(), Name: s.name, KeyType: addressType(s.v6)}
	switch s.kind {
	case permanent:
		set.Interval = true
	case ending:
		set.Interval, set.HasTimeout = true, true
	case directing:
		set.Interval, set.HasTimeout = true, true
		set.IsMap, set.DataType = true, nftables.TypeVerdict
	case remembering:
		set.Dynamic, set.Size = true, narrowSize
		set.HasTimeout, set.Timeout = true, narrowTimeout
	case metering:
		set.Dynamic, set.Size = true, meterSize
		set.HasTimeout, set.Timeout = true, meterTimeout
	}
	return set
}

var serviceType = nftables.MustConcatSetType(nftables.TypeInetProto, nftables.TypeInetService)

// serviceSet describes a service set to the kernel.
func (b *batch) serviceSet(name string) *nftables.Set {
	return &nftables.Set{Table: b.table(), Name: name, KeyType: serviceType, Counter: slices.Contains(countingSets(),
		name)}
}

// serviceKey is a service as an element's key: each field padded to a register of 32 bits.
func serviceKey(s service) []byte {
	key := make([]byte, 8)
	key[0] = ipProtocols[s.proto]
	copy(key[4:], binaryutil.BigEndian.PutUint16(s.port))
	return key
}

// portSet describes a port set to the kernel.
func (b *batch) portSet(s portSet) *nftables.Set {
	return &nftables.Set{Table: b.table(), Name: s.name, KeyType: nftables.TypeInetService}
}

// changeKeys adds and deletes elements that are nothing but a key.
func changeKeys[K comparable](b *batch, set *nftables.Set, have, want map[K]struct{}, bytes func(K) []byte) {
	missing := func(in, of map[K]struct{}) (list []nftables.SetElement) {
		for k := range of {
			if _, ok := in[k]; !ok {
				list = append(list, nftables.SetElement{Key: bytes(k)})
			}
		}
		return list
	}
	b.changeElements(set, missing(want, have), missing(have, want))
}

// changeElements deletes and adds elements, in this order, so that an element may be replaced.
func (b *batch) changeElements(set *nftables.Set, remove, add []nftables.SetElement) {
	if len(remove) > 0 {
		b.note(b.conn.SetDeleteElements(set, remove))
	}
	if len(add) > 0 {
		b.note(b.conn.SetAddElements(set, add))
	}
}

// maxComment is the longest comment that nft accepts: NFTNL_UDATA_COMMENT_MAXLEN in libnftnl's
// udata.h, less the terminating zero.
const maxComment = 127

// comment returns the line of nft that r means as nft takes it in a comment: without quotes, and
// shortened.
func (r rule) comment() string {
	text := strings.ReplaceAll(r.text, `"`, "")
	if len(text) > maxComment {
		text = text[:maxComment-3] + "..."
	}
	return text
}

// rule describes a rule to the kernel.
func (b *batch) rule(chain string, r rule) *nftables.Rule {
	table := b.table()
	return &nftables.Rule{
		Table: table, Chain: &nftables.Chain{Table: table, Name: chain},
		Exprs:    r.exprs,
		UserData: userdata.AppendString(nil, userdata.TypeComment, r.comment()),
	}
}
