package audit

import (
	"fmt"
	"strings"
	"time"
)

// When entries of a kind are many: so many at least, and so much of the table or of its limit in percent.
const (
	idleFor       = time.Hour // silence after which a connection counts as idle
	many          = 1000
	manyHalfOpen  = 25
	manyUnreplied = 50
	manyIdle      = 25
	muchOfLimit   = 5
	ownOfLimit    = 10
	littleOfLimit = 1 // less of its own traffic is not worth a rule
)

const flushCuts = "conntrack -F would cut everybody: every NAT mapping is lost, and with tcp_loose=0 every connection"

// stuck says whether idle connections are a good part of the table.
func (f *Facts) stuck() bool {
	n := f.Table.Idle
	return n >= many && (percent(n, f.Table.Listed) >= manyIdle || percent(n, f.limit()) >= muchOfLimit)
}

// judgeIdle is about connections that have been silent for long.
func judgeIdle(f *Facts) []Finding {
	if !f.Loaded || f.NoTable {
		return nil
	}
	var all []Finding
	if f.Table.Older > 0 {
		all = append(all, Finding{ID: OldTimeout, Severity: Info, Sure: Certain,
			Title:    fmt.Sprintf("%d established connections live by a longer timeout", f.Table.Older),
			Evidence: fmt.Sprintf("they have more than the %d s left that %s gives", f.Settings[established], established),
			Why: "a timeout that is made shorter reaches an entry with its next packet, and those whose ends have gone " +
				"never. How long they have been silent can't be told"})
	}
	if f.Table.Idle == 0 {
		return append(all, fine(Idle, "no established connection has been silent for an hour"))
	}
	found := Finding{ID: Idle, Severity: Info, Sure: Certain,
		Title: fmt.Sprintf("%d established connections have been silent for an hour or longer", f.Table.Idle),
		Evidence: fmt.Sprintf("%.0f %% of the entries; most are of %s", percent(f.Table.Idle, f.Table.Listed),
			holders(f.Table.IdleTop)),
		Why: "connections that are kept open look the same as those whose ends have gone. " + flushCuts,
		Do: []string{"ctguard flows --state ESTABLISHED --assured --silent 1h",
			"ctguard evict --state ESTABLISHED --assured --silent 1h --dry-run"}}
	if f.stuck() {
		found.Severity = Warning
	}
	return append(all, found)
}

// holders writes who has how many entries.
func holders(list []Holder) string {
	var words []string
	for _, h := range list[:min(5, len(list))] {
		words = append(words, fmt.Sprintf("%s (%d)", h.Addr, h.Entries))
	}
	return strings.Join(words, ", ")
}

// judgeUnanswered is about handshakes that are not finished, and what nobody answers.
func judgeUnanswered(f *Facts) []Finding {
	if !f.Loaded || f.NoTable {
		return nil
	}
	var all []Finding
	share := percent(f.Table.HalfOpen, f.Table.Listed)
	if f.Table.HalfOpen >= many && share >= manyHalfOpen {
		all = append(all, Finding{ID: HalfOpen, Severity: Warning,
			Title:    fmt.Sprintf("%.0f %% of the entries are half-open", share),
			Evidence: fmt.Sprintf("%d of %d are SYN_SENT or SYN_RECV", f.Table.HalfOpen, f.Table.Listed),
			Why: "a SYN flood, a scan, or servers that do not answer. They go by themselves within two minutes, so that " +
				"deleting them brings little while it lasts",
			Do: []string{"ctguard flows --state SYN_RECV -n 20", "sysctl -w net.ipv4.tcp_syncookies=1"}, Sure: Likely})
	} else {
		all = append(all, fine(HalfOpen, "%d half-open connections", f.Table.HalfOpen))
	}
	share = percent(f.Table.Unreplied, f.Table.Listed)
	if f.Table.Unreplied >= many && share >= manyUnreplied && len(all) > 0 && all[0].Severity == OK {
		all = append(all, Finding{ID: Unreplied, Severity: Warning,
			Title:    fmt.Sprintf("%.0f %% of the entries never saw an answer", share),
			Evidence: fmt.Sprintf("%d of %d", f.Table.Unreplied, f.Table.Listed),
			Why:      "a flood, a scan from inside, or answers that take another way",
			Do:       []string{"ctguard sources --full", "ctguard flows --unreplied -n 20"}, Sure: Likely})
	}
	return all
}

// judgeOwn is about what this host says to itself.
func judgeOwn(f *Facts) []Finding {
	n := f.Table.Loopback + f.Table.Own
	switch {
	case n == 0:
		return nil
	case percent(n, f.limit()) < littleOfLimit:
		return []Finding{fine(OwnTraffic, "%d entries are this host's own, to itself", n)}
	}
	found := Finding{ID: OwnTraffic, Severity: Info, Title: fmt.Sprintf("%d entries are this host's own, to itself", n),
		Evidence: fmt.Sprintf("%d of loopback, %d between its other addresses", f.Table.Loopback, f.Table.Own),
		Why: "what never leaves the host needs no tracking, unless a rule redirects it, and where the filter accepts lo " +
			"without a ct state",
		Do: []string{"nft 'table inet raw { chain pre { type filter hook prerouting priority raw; iif lo notrack; }; " +
			"chain out { type filter hook output priority raw; oif lo notrack; }; }'"}, Sure: Certain}
	if n >= many && percent(n, f.limit()) >= ownOfLimit {
		found.Severity = Warning
	}
	return []Finding{found}
}
