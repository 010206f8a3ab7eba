package audit

import (
	"fmt"
	"strings"

	"ctguard/policy"
)

// sourcePorts is how many ports the kernel takes from where a flow's own is taken: those from 1024 on
// (nf_nat_l4proto_unique_tuple in net/netfilter/nf_nat_core.c).
const sourcePorts = 65536 - 1024

// Marks of how many of them may be in use, in percent.
const (
	portsHalf = 50
	portsGone = 90
)

// judgeNAT says what translates, and for whom.
func judgeNAT(f *Facts) []Finding {
	if len(f.Rules.NAT) == 0 && f.Table.Translated == 0 && !f.hasLegacy("nat") {
		return nil
	}
	where := f.Rules.NAT
	if f.hasLegacy("nat") {
		where = append(where[:len(where):len(where)], "the nat table of iptables-legacy")
	}
	evidence := strings.Join(where, ", ")
	if len(f.Table.Inside) > 0 {
		evidence += "; inside hosts with the most entries: " + holders(f.Table.Inside)
	}
	return []Finding{{ID: NAT, Severity: Info, Title: fmt.Sprintf("this host translates: %d entries", f.Table.Translated),
		Evidence: evidence, Sure: Certain,
		Why: "what is translated must stay tracked, and an entry that goes takes its mapping along: never flush the " +
			"table. ctguard run takes for inside hosts: " + inside(f)}}
}

// inside says for whom this host forwards.
func inside(f *Facts) string {
	if len(f.Rules.Inside) == 0 {
		return "nobody; if it is a gateway all the same, set profile = \"nat-gateway\""
	}
	return policy.NamePrefixes(f.Rules.Inside, 5)
}

// judgePorts looks for public addresses that run out of source ports.
func judgePorts(f *Facts) (all []Finding) {
	for _, use := range f.Table.Ports {
		share := percent(use.Entries, sourcePorts)
		if share < portsHalf || len(all) >= 5 {
			break // the most used come first
		}
		found := Finding{ID: PortsLeft, Severity: Warning, Sure: Likely,
			Title: fmt.Sprintf("%s has %d source ports left towards %s", use.Public, max(0, sourcePorts-use.Entries),
				use.Destination),
			Evidence: fmt.Sprintf("%d entries of %s, of %d ports", use.Entries, protocol(use.Protocol), sourcePorts),
			Why:      "when they are used up, new connections from inside to there fail though the table has room",
			Do: []string{"ctguard flows --nat -d " + use.Destination.Addr().String() + "  # shows who uses them",
				"# add a public address: snat to ADDR1-ADDR2"}}
		if share >= portsGone {
			found.Severity = Critical
		}
		all = append(all, found)
	}
	return all
}
