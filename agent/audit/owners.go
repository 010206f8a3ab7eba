package audit

import (
	"fmt"
	"slices"
	"strings"
)

// program is other software that has rules of its own.
type program struct {
	name           string
	tables, chains []string // names, or their beginnings where they end in *
	sets           []string
	does           string // what it sets at its start
	do             string
}

var programs = []program{
	{name: "ufw", chains: []string{"ufw-*", "ufw6-*"},
		does: "at its start it applies /etc/ufw/sysctl.conf, after /etc/sysctl.d: put settings of conntrack there, too",
		do:   "grep conntrack /etc/ufw/sysctl.conf"},
	{name: "firewalld", tables: []string{"firewalld", "firewalld_*"}, chains: []string{"INPUT_ZONES", "FWD_*_ZONES"},
		does: "it sets no limits or timeouts; a reload makes its table anew, and it may load and give helpers by service",
		do:   "firewall-cmd --get-automatic-helpers"},
	{name: "docker", tables: []string{"docker-bridges"}, chains: []string{"DOCKER", "DOCKER-*"},
		does: "it sets ip_forward, nothing of conntrack; its NAT keeps published ports and what containers send tracked"},
	{name: "kube-proxy", tables: []string{"kube-proxy"}, chains: []string{"KUBE-*"},
		does: "at its start it writes nf_conntrack_max, tcp_timeout_established and tcp_timeout_close_wait over what " +
			"/etc/sysctl.d says",
		do: "# to keep yours set conntrack.maxPerCore: 0 and the timeouts to 0s in its configuration"},
	{name: "fail2ban", tables: []string{"f2b-*"}, chains: []string{"f2b-*"}, sets: []string{"addr-set-*", "f2b-*"},
		does: "it sets nothing; it refuses behind conntrack: whom it bans costs a lookup still, and entries stay"},
	{name: "CrowdSec", tables: []string{"crowdsec", "crowdsec6"}, chains: []string{"CROWDSEC_CHAIN", "crowdsec-*"},
		sets: []string{"crowdsec-*"}, does: "it sets nothing; entries of those that it bans stay until they expire"},
}

// judgeOwners names the other programs that have rules here.
func judgeOwners(f *Facts) (all []Finding) {
	for _, p := range programs {
		var seen []string
		for kind, lists := range map[string][2][]string{
			"table": {tableNames(f.Rules.Tables), p.tables}, "set": {f.Rules.Sets, p.sets},
			"chain": {slices.Concat(f.Rules.Chains, f.LegacyChains), p.chains},
		} {
			for _, name := range lists[0] {
				if slices.ContainsFunc(lists[1], func(pattern string) bool { return matches(pattern, name) }) {
					seen = append(seen, kind+" "+name)
				}
			}
		}
		if len(seen) == 0 {
			continue
		}
		slices.Sort(seen)
		seen = slices.Compact(seen)
		evidence := strings.Join(seen[:min(4, len(seen))], ", ")
		if more := len(seen) - 4; more > 0 {
			evidence += fmt.Sprintf(" and %d more", more)
		}
		all = append(all, Finding{ID: Owner, Severity: Info, Title: p.name + " has rules here", Evidence: evidence,
			Why: p.does, Do: slices.DeleteFunc([]string{p.do}, isEmpty), Sure: Likely})
	}
	return all
}

func isEmpty(text string) bool { return text == "" }

// tableNames strips the families.
func tableNames(tables []string) (names []string) {
	for _, t := range tables {
		_, name, _ := strings.Cut(t, " ")
		names = append(names, name)
	}
	return names
}

// matches says whether a name is meant by a pattern that may have one * in it.
func matches(pattern, name string) bool {
	before, after, wild := strings.Cut(pattern, "*")
	if !wild {
		return pattern == name
	}
	return len(name) >= len(before)+len(after) && strings.HasPrefix(name, before) && strings.HasSuffix(name, after)
}

// hasLegacy says whether iptables-legacy has rules in a table.
func (f *Facts) hasLegacy(table string) bool {
	return slices.ContainsFunc(f.Legacy, func(name string) bool { return strings.HasSuffix(name, " "+table) })
}

// judgeLegacy looks for two rulesets beside each other.
func judgeLegacy(f *Facts) []Finding {
	if len(f.Legacy) == 0 || len(f.Rules.Tables) == 0 {
		return nil
	}
	return []Finding{{ID: LegacyAndNft, Severity: Warning, Title: "iptables-legacy and nftables both have rules",
		Sure:     Certain,
		Evidence: fmt.Sprintf("legacy: %s; nftables: %s", strings.Join(f.Legacy, ", "), strings.Join(f.Rules.Tables, ", ")),
		Why: "every packet passes both, a drop in either is final, and each tool shows its own half only: a notrack or " +
			"an accept in one is undone in the other without anybody seeing it",
		Do: []string{"iptables-legacy-save", "nft list ruleset",
			"iptables-legacy-save | iptables-restore-translate -f /dev/stdin  # what the one would be in the other"}}}
}
