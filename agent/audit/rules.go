package audit

import (
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/xt"
	"golang.org/x/sys/unix"
)

// mostChains bounds the chains whose rules are read. Those that packets come to first are first; kube-proxy
// makes a chain a service.
const mostChains = 2048

// readRules reads what nftables has. Each chain is read once, and of sets only names.
func (f *Facts) readRules() error {
	conn, err := nftables.New(nftables.AsLasting())
	if err != nil {
		return fmt.Errorf("read nftables rules: %w", err)
	}
	defer conn.CloseLasting()
	chains, err := conn.ListChains()
	if err != nil {
		return fmt.Errorf("list nftables chains: %w", err)
	}
	chains = slices.DeleteFunc(chains, func(c *nftables.Chain) bool { return isOwn(c.Table) })
	// Chains at a hook first.
	slices.SortStableFunc(chains, func(a, b *nftables.Chain) int { return rank(a) - rank(b) })
	l := rulesReader{conn: conn, facts: f, sets: make(map[string][]*nftables.Set), seen: make(map[string]bool)}
	for i, c := range chains {
		f.Rules.Chains = append(f.Rules.Chains, c.Name)
		if i >= mostChains {
			f.Rules.Cut = true
			continue
		}
		l.chain(c)
	}
	return l.names()
}

func isOwn(t *nftables.Table) bool {
	return t.Name == "ctguard" && t.Family == nftables.TableFamilyINet
}

func rank(c *nftables.Chain) int {
	if c.Hooknum != nil {
		return 0
	}
	return 1
}

// rulesReader is one pass over the rules.
type rulesReader struct {
	conn  *nftables.Conn
	facts *Facts
	sets  map[string][]*nftables.Set // by table
	seen  map[string]bool            // tables with rules
}

// families as nft writes them.
var families = map[nftables.TableFamily]string{
	nftables.TableFamilyIPv4: "ip", nftables.TableFamilyIPv6: "ip6", nftables.TableFamilyINet: "inet",
	nftables.TableFamilyARP: "arp", nftables.TableFamilyBridge: "bridge", nftables.TableFamilyNetdev: "netdev",
}

func tableName(t *nftables.Table) string { return families[t.Family] + " " + t.Name }

// chain reads the rules of one chain.
func (l *rulesReader) chain(c *nftables.Chain) {
	rules, err := l.conn.GetRules(c.Table, c)
	if err != nil {
		l.facts.note(fmt.Errorf("read the rules of chain %s: %w", c.Name, err))
		return
	}
	r, table := &l.facts.Rules, tableName(c.Table)
	name := "chain " + c.Name + " of table " + table
	if len(rules) > 0 && !l.seen[table] && c.Table.Family != nftables.TableFamilyARP {
		l.seen[table] = true
		r.Tables = append(r.Tables, table)
	}
	if len(rules) > 0 && c.Type == nftables.ChainTypeNAT {
		r.NAT = append(r.NAT, name)
	}
	for _, one := range rules {
		for _, found := range []struct {
			does bool
			list *[]string
		}{{untracks(one), &r.Notrack}, {l.dropsInvalid(one), &r.DropInvalid}, {helps(one), &r.Helpers}} {
			if found.does && !slices.Contains(*found.list, name) {
				*found.list = append(*found.list, name)
			}
		}
	}
}

// names lists the sets of every table that are not a rule's own.
func (l *rulesReader) names() error {
	tables, err := l.conn.ListTables()
	if err != nil {
		return fmt.Errorf("list nftables tables: %w", err)
	}
	for _, t := range tables {
		if isOwn(t) {
			continue
		}
		for _, s := range l.setsOf(t) {
			if !s.Anonymous {
				l.facts.Rules.Sets = append(l.facts.Rules.Sets, s.Name)
			}
		}
	}
	return nil
}

// setsOf returns the sets of a table, without their elements.
func (l *rulesReader) setsOf(t *nftables.Table) []*nftables.Set {
	name := tableName(t)
	if _, known := l.sets[name]; !known {
		sets, err := l.conn.GetSets(t)
		l.facts.note(err)
		l.sets[name] = sets
	}
	return l.sets[name]
}

// untracks says whether a rule leaves something untracked.
func untracks(one *nftables.Rule) bool {
	return slices.ContainsFunc(one.Exprs, func(e expr.Any) bool {
		switch e := e.(type) {
		case *expr.Notrack:
			return true
		case *expr.Target:
			if e.Name == "NOTRACK" {
				return true
			}
			info, ok := e.Info.(*xt.Unknown)
			// struct xt_ct_target_info begins with its flags; the first is XT_CT_NOTRACK.
			return ok && e.Name == "CT" && len(*info) >= 2 && binary.NativeEndian.Uint16(*info)&1 != 0
		}
		return false
	})
}

// helps says whether a rule gives flows a helper.
func helps(one *nftables.Rule) bool {
	return slices.ContainsFunc(one.Exprs, func(e expr.Any) bool {
		switch e := e.(type) {
		case *expr.Objref:
			return e.Type == unix.NFT_OBJECT_CT_HELPER
		case *expr.Target:
			info, ok := e.Info.(*xt.Unknown)
			// flags, zone, two event masks, then the helper's name
			return ok && e.Name == "CT" && len(*info) > 12 && (*info)[12] != 0
		}
		return false
	})
}

// dropsInvalid says whether a rule drops what has ct state invalid.
func (l *rulesReader) dropsInvalid(one *nftables.Rule) bool {
	state, invalid := uint32(0), false
	for _, e := range one.Exprs {
		switch e := e.(type) {
		case *expr.Ct:
			if e.Key == expr.CtKeySTATE && !e.SourceRegister {
				state = e.Register
			}
		case *expr.Bitwise:
			if e.SourceRegister == state && state != 0 && len(e.Mask) == 4 {
				invalid = invalid || binary.NativeEndian.Uint32(e.Mask)&expr.CtStateBitINVALID != 0
			}
		case *expr.Lookup:
			if e.SourceRegister == state && state != 0 && e.IsDestRegSet && l.mapDropsInvalid(one.Table, e.SetName) {
				return true
			}
		case *expr.Match:
			invalid = invalid || matchesInvalid(e.Info)
		case *expr.Verdict:
			return invalid && e.Kind == expr.VerdictDrop
		case *expr.Target:
			return invalid && e.Name == "DROP"
		}
	}
	return false
}

// matchesInvalid says whether a match of iptables is about INVALID packets; see xt_conntrack.h.
func matchesInvalid(info xt.InfoAny) bool {
	const invalid = 1 // XT_CONNTRACK_STATE_INVALID
	about := func(base xt.ConntrackMtinfoBase, states uint16) bool {
		return base.MatchFlags&uint16(xt.ConntrackState) != 0 && base.InvertFlags&uint16(xt.ConntrackState) == 0 &&
			states&invalid != 0
	}
	switch m := info.(type) {
	case *xt.ConntrackMtinfo1:
		return about(m.ConntrackMtinfoBase, uint16(m.StateMask))
	case *xt.ConntrackMtinfo2:
		return about(m.ConntrackMtinfoBase, m.StateMask)
	case *xt.ConntrackMtinfo3:
		return about(m.ConntrackMtinfoBase, m.StateMask)
	}
	return false
}

// drops says whether an element's verdict is to drop. The library leaves verdicts as the kernel sends them: one
// attribute, NFTA_VERDICT_CODE, and for jumps another.
func drops(e nftables.SetElement) bool {
	if e.VerdictData != nil {
		return e.VerdictData.Kind == expr.VerdictDrop
	}
	return len(e.Val) == 8 && int64(int32(binary.BigEndian.Uint32(e.Val[4:]))) == int64(expr.VerdictDrop)
}

// mapDropsInvalid says whether a verdict map, as ct state vmap uses it, drops INVALID. It has a handful of
// elements, for there are no more states.
func (l *rulesReader) mapDropsInvalid(t *nftables.Table, name string) bool {
	for _, s := range l.setsOf(t) {
		if s.Name != name || s.KeyType.Bytes != 4 || s.Size > 64 || !s.IsMap {
			continue
		}
		elements, err := l.conn.GetSetElements(s)
		if err != nil {
			return false
		}
		return slices.ContainsFunc(elements, func(e nftables.SetElement) bool {
			return len(e.Key) == 4 && binary.NativeEndian.Uint32(e.Key)&expr.CtStateBitINVALID != 0 && drops(e)
		})
	}
	return false
}
