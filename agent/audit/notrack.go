package audit

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"ctguard/policy"
)

// overlays are tunnels whose outer packets need no tracking, by UDP port: VXLAN (RFC 7348, and the kernel's old
// one), GENEVE (RFC 8926), WireGuard, IPsec over UDP (RFC 3948).
var overlays = map[uint16]string{
	4789: "vxlan", 8472: "vxlan", 6081: "geneve", 51820: "wireguard", 4500: "ipsec",
}

// saving is a candidate for notrack and the entries it would save.
type saving struct {
	what    string
	entries int
}

// judgeNotrack is about what is untracked, and what could be.
func judgeNotrack(f *Facts) (all []Finding) {
	if len(f.Rules.Notrack) > 0 {
		all = append(all, Finding{ID: Notrack, Severity: Info, Title: "rules leave traffic untracked", Sure: Certain,
			Evidence: strings.Join(f.Rules.Notrack, ", "),
			Why: "untracked traffic must be accepted both ways without a ct state, and gets no NAT, no helper and no " +
				"RELATED: see that prerouting and output both have it"})
	}
	var saved []saving
	stays := make(map[string]int) // reason to entries
	for _, s := range f.Services {
		if s.Protocol != policy.TCP && s.Protocol != policy.UDP {
			continue
		}
		proto := uint8(unix.IPPROTO_TCP)
		if s.Protocol == policy.UDP {
			proto = unix.IPPROTO_UDP
		}
		n := f.Table.Local[Port{proto, s.Port}]
		if reason := f.Pinned[s]; reason != "" {
			stays[reason] += n
		} else if n > 0 {
			saved = append(saved, saving{s.String(), n})
		}
	}
	for s, n := range f.Table.Forwarded {
		if reason := f.Pinned[s]; reason != "" {
			stays[reason] += n
		} else {
			saved = append(saved, saving{s.String(), n})
		}
	}
	if n := f.Table.Segments; n > 0 && len(f.Rules.Notrack) == 0 {
		saved = append(saved, saving{"between inside networks, unless a filter there asks for a state", n})
	}
	if f.Table.Group > 0 {
		saved = append(saved, saving{"multicast and broadcast", f.Table.Group})
	}
	for name, n := range f.Table.Overlays {
		saved = append(saved, saving{name + " tunnels", n})
	}
	if len(saved) == 0 {
		return all
	}
	slices.SortFunc(saved, func(a, b saving) int {
		return cmp.Or(cmp.Compare(b.entries, a.entries), strings.Compare(a.what, b.what))
	})
	return append(all, candidates(saved, stays))
}

// candidates lists what could go untracked.
func candidates(saved []saving, stays map[string]int) Finding {
	sum := 0
	var words []string
	for i, s := range saved {
		sum += s.entries
		if i < 6 {
			words = append(words, fmt.Sprintf("%s (%d entries)", s.what, s.entries))
		}
	}
	why := "a busy service needs no entries; its own filter rules must accept it both ways without a ct state, and " +
		"flows that lose their entry in the middle need tcp_loose=1"
	for _, reason := range slices.Sorted(maps.Keys(stays)) {
		why += fmt.Sprintf("; %d entries must stay tracked: %s", stays[reason], reason)
	}
	return Finding{ID: Candidates, Severity: Info, Title: fmt.Sprintf("%d entries could do without tracking", sum),
		Evidence: strings.Join(words, ", "), Why: why, Sure: Likely,
		Do: []string{"ctguard plan --level notrack  # shows the rules; ctguard run tries each before it relies on it"}}
}
