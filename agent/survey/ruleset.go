package survey

import (
	"errors"
	"fmt"
	"strings"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// ruleset reads the nftables rules of the calling thread's namespace, those that iptables-nft
// writes included. It reads rules by itself: the library leaves out expressions that it does not know,
// and one that is left out may be the one that matters.
type ruleset struct {
	conn   *nftables.Conn
	chains []*nftables.Chain
	tables map[tableKey]map[string][]rule // rules by chain, of the tables that were asked for
}

type tableKey struct {
	family nftables.TableFamily
	name   string
}

// rule is the expressions of one rule, in order.
type rule []expression

// expression is one step of a rule: its name and the attributes of its kind.
type expression struct {
	name string
	data []byte
}

func openRuleset(conn *nftables.Conn) (*ruleset, error) {
	chains, err := conn.ListChains()
	if err != nil {
		return nil, fmt.Errorf("list nftables chains: %w", err)
	}
	return &ruleset{conn, chains, make(map[tableKey]map[string][]rule)}, nil
}

// whereIs names a chain for the operator.
func whereIs(table tableKey, chain string) string {
	return "chain " + chain + " of table " + table.name
}

func keyOf(t *nftables.Table) tableKey { return tableKey{t.Family, t.Name} }

// rules returns the rules of one chain. The first call for a table reads all of it in one go.
func (r *ruleset) rules(table tableKey, chain string) ([]rule, error) {
	if known, ok := r.tables[table]; ok {
		return known[chain], nil
	}
	var err error
	for range 3 { // each attempt fails if somebody changes rules meanwhile
		var found map[string][]rule
		if found, err = readRules(table); err == nil {
			r.tables[table] = found
			return found[chain], nil
		}
		if !errors.Is(err, errInterrupted) {
			break
		}
	}
	return nil, fmt.Errorf("read the rules of table %s: %w", table.name, err)
}

var errInterrupted = errors.New("the rules changed while they were read")

// readRules dumps a table; see nf_tables_getrule in net/netfilter/nf_tables_api.c.
func readRules(table tableKey) (map[string][]rule, error) {
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	name, err := netlink.MarshalAttributes([]netlink.Attribute{{Type: unix.NFTA_RULE_TABLE, Data: []byte(table.name + "\x00")}})
	if err != nil {
		return nil, err
	}
	messages, err := conn.Execute(netlink.Message{
		Header: netlink.Header{Type: unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETRULE, Flags: netlink.Request | netlink.Dump},
		Data:   append([]byte{byte(table.family), 0, 0, 0}, name...), // struct nfgenmsg
	})
	if err != nil {
		return nil, err
	}
	found := make(map[string][]rule)
	for _, m := range messages {
		if m.Header.Flags&netlink.DumpInterrupted != 0 {
			return nil, errInterrupted
		}
		chain, one, err := parseRule(m.Data)
		if err != nil {
			return nil, err
		}
		found[chain] = append(found[chain], one)
	}
	return found, nil
}

// parseRule reads the chain and the expressions of one rule.
func parseRule(b []byte) (chain string, one rule, err error) {
	if len(b) < 4 {
		return "", nil, errors.New("a rule is cut off")
	}
	attributes, err := netlink.UnmarshalAttributes(b[4:])
	if err != nil {
		return "", nil, err
	}
	for _, a := range attributes {
		switch a.Type &^ netlink.Nested {
		case unix.NFTA_RULE_CHAIN:
			chain = text(a.Data)
		case unix.NFTA_RULE_EXPRESSIONS:
			if one, err = parseExpressions(a.Data); err != nil {
				return "", nil, err
			}
		}
	}
	return chain, one, nil
}

func parseExpressions(b []byte) (one rule, err error) {
	list, err := netlink.UnmarshalAttributes(b)
	if err != nil {
		return nil, err
	}
	for _, element := range list {
		attributes, err := netlink.UnmarshalAttributes(element.Data)
		if err != nil {
			return nil, err
		}
		var e expression
		for _, a := range attributes {
			switch a.Type &^ netlink.Nested {
			case unix.NFTA_EXPR_NAME:
				e.name = text(a.Data)
			case unix.NFTA_EXPR_DATA:
				e.data = a.Data
			}
		}
		one = append(one, e)
	}
	return one, nil
}

// text is a string attribute without the zero that ends it.
func text(b []byte) string { return strings.TrimRight(string(b), "\x00") }
