package audit

import (
	"fmt"
	"strings"
)

// timeout is what is known about one timeout, in seconds.
type timeout struct {
	name    string // without nf_conntrack_
	usual   int    // what kernels make it, the longest of their defaults
	advised int    // what the usual advice makes it; 0 where there is none
	least   int    // below it living connections lose their entries; 0 where nobody knows
	because string // of least
}

const established = "nf_conntrack_tcp_timeout_established"

// Established connections: what kernels keep them for, what kube-proxy makes of it, and what RFC 5382 (REQ-5)
// demands of a NAT at least.
const (
	fiveDays         = 432000
	oneDay           = 86400
	leastEstablished = 7440
)

// timeouts are those that advice is given about. Defaults from net/netfilter/nf_conntrack_proto_*.c; those of
// UDP streams and of dead SCTP associations became shorter over the years, and the longest counts.
var timeouts = []timeout{
	{"generic_timeout", 600, 120, 0, ""},
	{"icmp_timeout", 30, 0, 0, ""},
	{"icmpv6_timeout", 30, 0, 0, ""},
	{"tcp_timeout_syn_sent", 120, 60, 10, "a SYN is sent again after 1, 3 and 7 s"},
	{"tcp_timeout_syn_recv", 60, 30, 10, "an answer to a SYN is sent again after 1, 3 and 7 s"},
	{"tcp_timeout_fin_wait", 120, 30, 10, "data may still go the other way"},
	{"tcp_timeout_close_wait", 3600, 60, 10, "data may still go the other way"}, // kube-proxy makes it an hour
	{"tcp_timeout_last_ack", 30, 0, 0, ""},
	{"tcp_timeout_time_wait", 120, 30, 0, ""},
	{"tcp_timeout_close", 10, 0, 0, ""},
	{"tcp_timeout_max_retrans", 300, 0, 60, "a lossy path takes that long to recover"},
	{"tcp_timeout_unacknowledged", 300, 0, 60, "a lossy path takes that long to recover"},
	{"udp_timeout", 30, 0, 10, "a resolver waits that long for an answer"},
	{"udp_timeout_stream", 180, 0, 30, "what keeps UDP connections alive comes twice a minute at best"},
}

// judgeTimeouts compares the timeouts with the kernel's and with what is usually advised.
func judgeTimeouts(f *Facts) []Finding {
	if !f.Loaded {
		return nil
	}
	all := judgeEstablished(f)
	var longer, shorter, advised []string
	var long, short []Setting
	for _, t := range timeouts {
		name := "nf_conntrack_" + t.name
		switch value, ok := f.Settings[name]; {
		case !ok:
		case value > t.usual:
			longer = append(longer, fmt.Sprintf("%s is %d s, the kernel's default %d s", t.name, value, t.usual))
			long = append(long, Setting{name, t.usual, "the kernel's default"})
		case value < t.least:
			shorter = append(shorter, fmt.Sprintf("%s is %d s: %s", t.name, value, t.because))
			short = append(short, Setting{name, t.usual, "the kernel's default"})
		case t.advised > 0 && value > t.advised:
			advised = append(advised, fmt.Sprintf("%s=%d", name, t.advised))
		}
	}
	if len(long) > 0 {
		all = append(all, Finding{ID: TimeoutLong, Severity: Warning, Title: "entries live longer than they have to",
			Sure:     Likely,
			Evidence: strings.Join(longer, "; "), Why: "somebody made them longer; each dead entry takes a place until then",
			Do: set(long), Settings: long})
	}
	// While it guards, the daemon makes timeouts as short as it finds right, and puts them back.
	if len(short) > 0 && !f.engaged() {
		all = append(all, Finding{ID: TimeoutShort, Severity: Warning, Title: "living connections may lose their entries",
			Sure:     Likely,
			Evidence: strings.Join(shorter, "; "),
			Why:      "an entry that goes before its connection takes the NAT mapping and the firewall's memory of it along",
			Do:       set(short), Settings: short})
	}
	if len(advised) > 0 && len(long)+len(short) == 0 {
		all = append(all, Finding{ID: TimeoutAdvice, Severity: Info,
			Title:    "timeouts are the kernel's; shorter ones are often advised",
			Evidence: "usual advice: " + strings.Join(advised, " "), Sure: Certain,
			Why: "in attacks they brought nothing that could be measured, and they reach no entry that exists already; " +
				"ctguard run shortens both while the table is under pressure"})
	}
	return all
}

// engaged says whether a daemon has engaged steps, which change settings for as long.
func (f *Facts) engaged() bool { return f.Daemon != nil && f.Daemon.Level > 0 }

// set is the command that makes settings what they should be.
func set(list []Setting) []string {
	var b strings.Builder
	b.WriteString("sysctl -w")
	for _, s := range list {
		fmt.Fprintf(&b, " net.netfilter.%s=%d", s.Name, s.Value)
	}
	return []string{b.String()}
}

// judgeEstablished is about the longest of all timeouts.
func judgeEstablished(f *Facts) []Finding {
	value, ok := f.Settings[established]
	switch {
	case !ok:
		return nil
	case value < leastEstablished && !f.engaged():
		change := []Setting{{established, leastEstablished, "the least that RFC 5382 lets a NAT do"}}
		return []Finding{{ID: TimeoutShort, Severity: Warning, Title: "silent connections are cut off", Sure: Likely,
			Evidence: fmt.Sprintf("%s is %d s", established, value), Do: set(change), Settings: change,
			Why: "TCP's own keepalive comes after two hours: a connection that is silent until then has lost its entry, " +
				"and behind NAT its mapping"}}
	case value <= oneDay:
		return []Finding{fine(TimeoutEstablished, "established connections are kept for %s of silence", span(value))}
	}
	change := []Setting{{established, oneDay, "a connection that nobody ended goes after a day of silence"}}
	found := Finding{ID: TimeoutEstablished, Severity: Info, Sure: Certain, Do: set(change), Settings: change,
		Title:    fmt.Sprintf("established connections are kept for %s of silence", span(value)),
		Evidence: fmt.Sprintf("%s is %d s; the kernel's default is five days", established, value),
		Why: "a connection whose ends have gone without a word stays that long. It reaches new entries and those that " +
			"speak again; not below 7440 s, which RFC 5382 asks of a NAT"}
	if f.stuck() {
		found.Severity = Warning
		found.Why += ". Here such connections fill the table"
	}
	return []Finding{found}
}

// span writes seconds for people.
func span(seconds int) string {
	switch {
	case seconds%oneDay == 0:
		return fmt.Sprintf("%d days", seconds/oneDay)
	case seconds%3600 == 0:
		return fmt.Sprintf("%d hours", seconds/3600)
	}
	return fmt.Sprintf("%d s", seconds)
}

// judgeSwitches is about TCP's settings that are no timeouts.
func judgeSwitches(f *Facts) (all []Finding) {
	if loose, ok := f.Settings["nf_conntrack_tcp_loose"]; ok {
		found := fine(Loose, "tcp_loose is 1: connections are picked up in the middle")
		if loose == 0 && !f.engaged() {
			found = Finding{ID: Loose, Severity: Info, Title: "tcp_loose is 0: nothing is picked up in the middle",
				Sure:     Certain,
				Evidence: "nf_conntrack_tcp_loose is 0",
				Why: "a connection that this host sees one way only, or whose entry was deleted, never comes back; stray " +
					"packets make no entries"}
		}
		all = append(all, found)
	}
	if f.Settings["nf_conntrack_tcp_be_liberal"] != 0 {
		all = append(all, Finding{ID: Liberal, Severity: Info, Title: "packets outside of the TCP window are taken",
			Sure:     Certain,
			Evidence: "nf_conntrack_tcp_be_liberal is 1",
			Why:      "fewer packets are INVALID where routes are asymmetric; a reset is believed more easily"})
	}
	if n, ok := f.Settings["nf_conntrack_tcp_max_retrans"]; ok && n != 3 {
		all = append(all, Finding{ID: MaxRetrans, Severity: Info, Title: fmt.Sprintf("tcp_max_retrans is %d", n),
			Sure:     Certain,
			Evidence: fmt.Sprintf("nf_conntrack_tcp_max_retrans is %d, the kernel's default 3", n),
			Why:      "after so many packets sent again without an answer an entry gets tcp_timeout_max_retrans"})
	}
	return all
}
