package survey

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// ruleset is the nftables rules of the calling thread's namespace, those that iptables-nft writes included. It
// reads rules by itself: the library leaves out expressions that it does not know, and one that is left out may
// be the one that matters. Of each rule only what it may do is kept.
type ruleset struct {
	chains map[chainKey]*chain
	bases  []chainKey
	sets   map[setKey]*nftSet
	exact  map[chainKey][]exactRule // what each rule decides on
	looks  int                      // at rules, while ways through chains are followed

	interrupted bool // something changed meanwhile, be it only an element of a set
}

type tableKey struct {
	family nftables.TableFamily
	name   string
}

type chainKey struct {
	table tableKey
	name  string
}

// where names a chain for the operator.
func (k chainKey) where() string { return "chain " + k.name + " of table " + k.table.name }

// chain is a chain of rules.
type chain struct {
	base     bool
	kind     string // of a base chain: filter, nat or route
	hook     hook   // of a base chain
	priority int32  // likewise
	drops    bool   // likewise: what no rule accepts
	effects  []effect
	followed bool // effects has those of the chains it jumps to, too
	sorted   bool // an earlier rule may end the way of packets by the state of their connection
}

// ownTable is ctguard's own, see package nft: what it does is no reason against doing it.
const ownTable = "ctguard"

// readRuleset reads everything.
func readRuleset() (*ruleset, error) {
	r := &ruleset{chains: make(map[chainKey]*chain), sets: make(map[setKey]*nftSet),
		exact: make(map[chainKey][]exactRule)}
	err := r.complete(r.readChains())
	if err == nil {
		err = r.complete(r.readRules())
	}
	if err != nil {
		return nil, fmt.Errorf("read nftables rules: %w", err)
	}
	return r, nil
}

// complete notes whether something changed while it was read, which need not be a fault.
func (r *ruleset) complete(err error) error {
	if errors.Is(err, errInterrupted) {
		r.interrupted = true
		return nil
	}
	return err
}

// dropPolicy is NF_DROP, see include/uapi/linux/netfilter.h.
const dropPolicy = 0

// filtersOutput says whether this host's own packets may be refused: by the policy of a filter for what goes out, or
// by a rule in it.
func (r *ruleset) filtersOutput() bool {
	return slices.ContainsFunc(r.bases, func(key chainKey) bool {
		c := r.chains[key]
		return c.hook == output && c.kind == filterChain && (c.drops || slices.ContainsFunc(r.exact[key],
			func(rule exactRule) bool { return rule.verdict == diverted }))
	})
}

// skipped says whether the rules of a table never see a tracked packet of this host, or are ctguard's.
func (k tableKey) skipped() bool {
	return k.family == nftables.TableFamilyARP || k.family == nftables.TableFamilyNetdev ||
		k.family == nftables.TableFamilyINet && k.name == ownTable
}

// tableOf reads the table of a chain, rule or set from struct nfgenmsg and the attribute that is number 1 of each.
func tableOf(b []byte) tableKey {
	return tableKey{nftables.TableFamily(b[0]), text(attribute(b[4:], unix.NFTA_CHAIN_TABLE))}
}

func (r *ruleset) readChains() error {
	return dump(unix.NFT_MSG_GETCHAIN, unix.NFPROTO_UNSPEC, nil, func(b []byte) bool {
		table := tableOf(b)
		if table.skipped() {
			return true
		}
		key := chainKey{table, text(attribute(b[4:], unix.NFTA_CHAIN_NAME))}
		c := new(chain)
		r.chains[key] = c
		if where := attribute(b[4:], unix.NFTA_CHAIN_HOOK); where != nil {
			c.base, c.kind = true, text(attribute(b[4:], unix.NFTA_CHAIN_TYPE))
			if c.hook = hook(number(where, unix.NFTA_HOOK_HOOKNUM)); c.hook > postrouting {
				c.hook = prerouting // ingress, which is before it
			}
			c.priority = int32(number(where, unix.NFTA_HOOK_PRIORITY))
			policy := attribute(b[4:], unix.NFTA_CHAIN_POLICY)
			c.drops = policy != nil && number(b[4:], unix.NFTA_CHAIN_POLICY) == dropPolicy
			r.bases = append(r.bases, key)
		}
		return true
	})
}

// readRules reads the rules of all tables, one after the other.
func (r *ruleset) readRules() error {
	var at chainKey // where the rules before were: they come chain by chain
	var in *chain
	return dump(unix.NFT_MSG_GETRULE, unix.NFPROTO_UNSPEC, nil, func(b []byte) bool {
		family, table, name := nftables.TableFamily(b[0]), []byte(nil), []byte(nil)
		var expressions []byte
		for kind, value := range attributes(b[4:]) {
			switch kind {
			case unix.NFTA_RULE_TABLE:
				table = value
			case unix.NFTA_RULE_CHAIN:
				name = value
			case unix.NFTA_RULE_EXPRESSIONS:
				expressions = value
			}
		}
		if in == nil || family != at.table.family || !same(table, at.table.name) || !same(name, at.name) {
			at = chainKey{tableKey{family, text(table)}, text(name)}
			if in = r.chains[at]; in == nil {
				in = new(chain) // of a table that is skipped, or new: then the dump is interrupted
			}
		}
		if !at.table.skipped() {
			r.readRule(at, in, expressions)
			r.exact[at] = append(r.exact[at], r.readExact(at, expressions))
		}
		return true
	})
}

// same compares a string attribute with a string.
func same(b []byte, s string) bool { return strings.TrimRight(string(b), "\x00") == s }
