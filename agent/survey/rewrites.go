package survey

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// rewrites is what the rules of this namespace may do to packets that a host without NAT does not do.
type rewrites struct {
	nat    []translation
	tproxy string // which rule hands packets to sockets that they are not addressed to; empty where none does
}

// rewriteCache is the newest answer, and the generation of the rules that it holds for: with ten
// thousand rules, reading them again every few seconds would be most of what the agent does.
type rewriteCache struct {
	sync.Mutex
	generation uint32
	known      bool
	answer     rewrites
}

// rewrites looks at the rules of iptables-legacy and nftables, those of iptables-nft included.
func (h *Host) rewrites() (rewrites, error) {
	if file := h.legacy("nat"); file != "" {
		// Nothing more has to be known. A kernel with such tables may have no nftables.
		return rewrites{nat: []translation{{everything: true, where: "iptables-legacy has a nat table (" + file + ")"}}}, nil
	}
	found, err := h.nftRewrites()
	if err != nil {
		return rewrites{}, err
	}
	// That the kernel knows TPROXY means nothing by itself, but nobody needs the table without rules.
	if h.legacy("mangle") != "" && (h.lists("ip_tables_targets", "TPROXY") || h.lists("ip6_tables_targets", "TPROXY")) {
		found.tproxy = "the mangle table of iptables-legacy"
	}
	return found, nil
}

// nftRewrites is rewrites for nftables alone. It reads the rules only where they changed.
func (h *Host) nftRewrites() (rewrites, error) {
	h.read.Lock()
	defer h.read.Unlock()
	conn, err := nftables.New()
	if err != nil {
		return rewrites{}, fmt.Errorf("read nftables rules: %w", err)
	}
	generation, err := conn.GetGen()
	known := err == nil // else the rules are read each time
	if known && h.read.known && h.read.generation == generation.ID {
		return h.read.answer, nil
	}
	h.read.known = false
	rules, err := openRuleset(conn)
	if err != nil {
		return rewrites{}, err
	}
	var found rewrites
	if found.nat, err = rules.allTranslations(); err != nil {
		return rewrites{}, fmt.Errorf("look for NAT: %w", err)
	}
	if found.tproxy, err = rules.tproxy(); err != nil {
		return rewrites{}, fmt.Errorf("look for tproxy: %w", err)
	}
	// Rules that changed meanwhile have another generation, so they are read again next time.
	if h.read.known, h.read.answer = known, found; known {
		h.read.generation = generation.ID
	}
	return found, nil
}

// tproxy names a chain that may hand packets to sockets which they are not addressed to, if there is
// one. Only rules before routing can, and those that they jump to in the same table.
func (r *ruleset) tproxy() (where string, err error) {
	for _, base := range r.chains {
		if base.Type != nftables.ChainTypeFilter || base.Hooknum == nil || *base.Hooknum != prerouting {
			continue
		}
		for _, c := range r.chains {
			if keyOf(c.Table) != keyOf(base.Table) {
				continue
			}
			rules, err := r.rules(keyOf(c.Table), c.Name)
			if err != nil {
				return "", err
			}
			if slices.ContainsFunc(rules, proxies) {
				return whereIs(keyOf(c.Table), c.Name), nil
			}
		}
	}
	return "", nil
}

// proxies says whether a rule uses tproxy, of nftables or of iptables-nft.
func proxies(one rule) bool {
	return slices.ContainsFunc(one, func(e expression) bool {
		var t expr.Target
		return e.name == "tproxy" || e.name == "target" && expr.Unmarshal(unix.NFPROTO_IPV4, e.data, &t) == nil && t.Name == "TPROXY"
	})
}

// legacy names the file that says iptables-legacy has the table in this namespace, or nothing. Such
// rules are invisible to nftables, and the kernel has no other way to list them than as a whole.
func (h *Host) legacy(table string) string {
	for _, file := range []string{"ip_tables_names", "ip6_tables_names"} {
		if h.lists(file, table) {
			return file
		}
	}
	return ""
}

// lists says whether a file of /proc/net has a line; a file that isn't there has none.
func (h *Host) lists(file, line string) bool {
	text, err := os.ReadFile(h.net(file))
	return err == nil && strings.Contains("\n"+string(text), "\n"+line+"\n")
}
