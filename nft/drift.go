package nft

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"
)

// Intact reports whether the table is what the last Apply made it. It is one small request as long
// as nobody changed any ruleset in this namespace, and reads the whole table if somebody did. After
// false, Apply makes the table anew.
func (t *Table) Intact() (_ bool, err error) {
	if t.broken {
		return false, nil
	}
	defer t.socket.asks(answerWithin)(&err)
	generation, err := t.generation()
	if err != nil {
		return false, err
	}
	if t.have == nil || generation == t.checked {
		return true, nil
	}
	same, err := t.verify()
	if err != nil {
		return false, err
	}
	t.foreign++
	if same {
		t.checked = generation
	}
	t.broken = !same
	return same, nil
}

// Foreign returns how often Intact has seen that somebody else changed a ruleset in this namespace.
func (t *Table) Foreign() uint64 { return t.foreign }

// verify compares the table in the kernel with have.
func (t *Table) verify() (bool, error) {
	found, err := t.found()
	if errors.Is(err, ErrOwned) || err == nil && !found {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	for _, check := range []func() (bool, error){t.sameChains, t.sameSets, t.sameCounters} {
		if same, err := check(); err != nil || !same {
			return false, ignoreGone(err)
		}
	}
	if !t.unowned {
		return true, nil // nobody else can have touched an element
	}
	same, err := t.sameElements(time.Now())
	return same, ignoreGone(err)
}

// ignoreGone takes the error away that means something is missing.
func ignoreGone(err error) error {
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}

func (t *Table) sameChains() (bool, error) {
	chains, err := t.conn.ListChainsOfTableFamily(nftables.TableFamilyINet)
	if err != nil {
		return false, fmt.Errorf("list chains: %w", err)
	}
	chains = slices.DeleteFunc(chains, func(c *nftables.Chain) bool { return c.Table.Name != Name })
	if len(chains) != len(t.have.chains) {
		return false, nil
	}
	for _, want := range t.have.chains {
		i := slices.IndexFunc(chains, func(c *nftables.Chain) bool { return c.Name == want.name })
		if i < 0 || (want.hook == nil) != (chains[i].Hooknum == nil) {
			return false, nil
		}
		if same, err := t.sameRules(want); err != nil || !same {
			return false, err
		}
	}
	return true, nil
}

// sameRules compares a chain's rules by their comments: each says what its rule means.
func (t *Table) sameRules(want chain) (bool, error) {
	table := &nftables.Table{Name: Name, Family: nftables.TableFamilyINet}
	rules, err := t.conn.GetRules(table, &nftables.Chain{Table: table, Name: want.name})
	if err != nil {
		return false, fmt.Errorf("list rules of chain %s: %w", want.name, err)
	}
	return slices.EqualFunc(rules, want.rules, func(r *nftables.Rule, w rule) bool {
		comment, _ := userdata.GetString(r.UserData, userdata.TypeComment)
		return comment == w.comment()
	}), nil
}

func (t *Table) sameSets() (bool, error) {
	sets, err := t.conn.GetSets(&nftables.Table{Name: Name, Family: nftables.TableFamilyINet})
	if err != nil {
		return false, fmt.Errorf("list sets: %w", err)
	}
	var names, want []string
	for _, s := range sets {
		names = append(names, s.Name)
	}
	for _, s := range t.have.addressSets() {
		want = append(want, s.name)
	}
	want = append(want, serviceSets()...)
	for _, s := range portSets() {
		want = append(want, s.name)
	}
	for _, s := range straySets {
		want = append(want, s.name)
	}
	for _, s := range saidBy {
		if len(t.have.learn) > 0 {
			want = append(want, s.name)
		}
	}
	want = slices.AppendSeq(want, maps.Keys(t.have.flowSets()))
	for s := range t.have.greedy {
		want = append(want, s.name)
	}
	slices.Sort(names)
	slices.Sort(want)
	return slices.Equal(names, want), nil
}

func (t *Table) sameCounters() (bool, error) {
	counters, err := t.namedCounters()
	if err != nil || len(counters) != len(t.have.counters) {
		return false, err
	}
	for _, name := range t.have.counters {
		if _, ok := counters[name]; !ok {
			return false, nil
		}
	}
	return true, nil
}

// sameElements compares numbers of elements. Those that end about now may be there or not.
func (t *Table) sameElements(now time.Time) (bool, error) {
	for name, want := range t.have.services {
		elements, err := t.elements(name)
		if err != nil || len(elements) != len(want) {
			return false, err
		}
	}
	for name, want := range t.have.ports {
		elements, err := t.elements(name)
		if err != nil || len(elements) != len(want) {
			return false, err
		}
	}
	for name, want := range t.have.addresses {
		elements, err := t.elements(name)
		if err != nil {
			return false, err
		}
		starts := 0
		for _, e := range elements {
			if !e.IntervalEnd {
				starts++
			}
		}
		least := 0
		for _, e := range want {
			if !e.ending(now) {
				least++
			}
		}
		if starts < least || starts > len(want) {
			return false, nil
		}
	}
	return true, nil
}
