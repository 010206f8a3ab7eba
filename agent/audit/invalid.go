package audit

import (
	"fmt"
	"strings"
)

// manyInvalid is how many INVALID packets a second are worth a look.
const manyInvalid = 100

// judgeInvalid is about packets that conntrack could not place.
func judgeInvalid(f *Facts) (all []Finding) {
	if len(f.CPUs) == 0 {
		return nil
	}
	if n := f.moved(counterInvalid); f.Later != nil && float64(n) >= manyInvalid*f.Waited.Seconds() {
		all = append(all, Finding{ID: Invalid, Severity: Warning, Sure: Likely,
			Title:    fmt.Sprintf("%.0f INVALID packets a second", float64(n)/f.Waited.Seconds()),
			Evidence: f.perCPU("invalid", counterInvalid),
			Why: "stray packets of a scan or a flood, connections whose entries are gone, or asymmetric routes; each " +
				"costs a lookup, none makes an entry",
			Do: []string{"sysctl -w net.netfilter.nf_conntrack_log_invalid=255  # for a moment; see dmesg"}})
	} else {
		all = append(all, fine(Invalid, "%s", f.perCPU("INVALID packets", counterInvalid)))
	}
	if f.NoRules {
		return all
	}
	if f.Later == nil && f.OneWay == 0 {
		return append(all, f.dropRule("whether it is safe here takes three seconds to see: leave out --quick", Guess))
	}
	if f.OneWay > 0 {
		return all // judgeOneWay says it
	}
	return append(all, f.dropRule("it is safe here, as far as three seconds show: nothing is seen one way only", Guess))
}

// dropRule says whether there is a rule that drops INVALID.
func (f *Facts) dropRule(safe string, sure Sureness) Finding {
	found := Finding{ID: DropInvalid, Severity: Info, Title: "no rule drops INVALID packets", Sure: sure,
		Evidence: "no such rule among those of nftables",
		Why: "the usual advice asks for one. It frees no entry, and in attacks brought nothing that could be measured; " +
			safe}
	if len(f.Rules.DropInvalid) > 0 {
		found.Title, found.Sure = "a rule drops INVALID packets", Certain
		found.Evidence, found.Why = strings.Join(f.Rules.DropInvalid, ", "), safe
	}
	if f.Rules.Cut {
		found.Evidence += fmt.Sprintf("; the first %d chains were searched", mostChains)
	}
	if len(f.Legacy) > 0 {
		found.Evidence += "; iptables-legacy was not searched"
	}
	return found
}

// judgeOneWay is about connections of which this host sees one direction only.
func judgeOneWay(f *Facts) []Finding {
	if f.OneWay == 0 {
		return nil
	}
	found := Finding{ID: OneWay, Severity: Warning, Sure: Likely,
		Title:    fmt.Sprintf("%d connections are seen one way only", f.OneWay),
		Evidence: fmt.Sprintf("ESTABLISHED without an answer, and renewed within %s", f.Waited),
		Why: "asymmetric routes, or direct server return: tcp_loose=0 makes their packets INVALID, and a rule that " +
			"drops those then cuts them off. Do not follow that advice here",
		Do: []string{"ctguard flows -p tcp --state ESTABLISHED --unreplied",
			"# make the answers come back this way, or leave that traffic untracked"}}
	if len(f.Rules.DropInvalid) > 0 {
		found.Evidence += "; INVALID is dropped in " + strings.Join(f.Rules.DropInvalid, ", ")
	}
	return []Finding{found}
}
