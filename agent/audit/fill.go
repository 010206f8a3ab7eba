package audit

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/procfs"
)

// Marks of how full a table may be in percent. New connections fail at 100; what comes between is the time to act.
const (
	fullSoon = 75
	fullNow  = 90
)

// judgeReading says what could not be looked at.
func judgeReading(f *Facts) (all []Finding) {
	if len(f.Unread) > 0 {
		found := Finding{ID: NotRead, Severity: Warning, Title: "not everything could be read", Sure: Certain,
			Evidence: strings.Join(slices.Compact(slices.Sorted(slices.Values(f.Unread))), "; "),
			Why:      "what was not read is not judged"}
		if strings.Contains(found.Evidence, "permitted") || strings.Contains(found.Evidence, "permission") {
			found.Do = []string{"sudo ctguard audit"}
		}
		all = append(all, found)
	}
	if !f.Loaded {
		all = append(all, Finding{ID: NotLoaded, Severity: Info, Title: "this host tracks no connections", Sure: Certain,
			Evidence: "there is no /proc/sys/net/netfilter/nf_conntrack_max",
			Why:      "no table can fill up until something loads nf_conntrack, such as the first rule with a ct state"})
	}
	return all
}

// judgeFill compares the count with the limit.
func judgeFill(f *Facts) []Finding {
	if !f.Loaded {
		return nil
	}
	if f.limit() == 0 {
		return []Finding{fine(Fill, "%d entries, and no limit", f.Count)}
	}
	fill := percent(f.Count, f.limit())
	title := fmt.Sprintf("the table is %.0f %% full: %d of %d entries", fill, f.Count, f.limit())
	if fill < fullSoon {
		return []Finding{fine(Fill, "%s", title)}
	}
	found := Finding{ID: Fill, Severity: Warning, Title: title, Sure: Certain,
		Evidence: fmt.Sprintf("nf_conntrack_count %d, nf_conntrack_max %d", f.Count, f.limit()),
		Why:      "a full table drops every new connection without an error, yours too; those that exist go on",
		Do:       f.makeRoom(),
		Settings: f.sizes("the table was nearly full")}
	if fill >= fullNow {
		found.Severity = Critical
	}
	return []Finding{found}
}

// makeRoom is what to do about a table that is full.
func (f *Facts) makeRoom() (do []string) {
	if f.Daemon == nil {
		do = append(do, "systemctl start ctguard  # makes room, and keeps it")
	}
	return append(do, "ctguard sources --full  # shows who holds it", f.raise())
}

// judgePeak compares the most entries that were seen, and half as many again, with the limit.
func judgePeak(f *Facts) []Finding {
	peak := f.peak()
	if !f.Loaded || f.limit() == 0 || percent(f.Count, f.limit()) >= fullSoon {
		return nil
	}
	if peak+peak/2 <= f.limit() {
		return []Finding{fine(Peak, "the most entries seen, %d, and half as many again fit", peak)}
	}
	return []Finding{{ID: Peak, Severity: Warning, Title: fmt.Sprintf("a peak of %d entries leaves too little room", peak),
		Evidence: fmt.Sprintf("with half as many again that is %d, nf_conntrack_max is %d", peak+peak/2, f.limit()),
		Why:      "a burst on top of the usual peak fills the table", Do: []string{f.raise()}, Sure: Likely,
		Settings: f.sizes("the peak and half as much again")}}
}

// peak returns the most entries that were seen, by the daemon if there is one.
func (f *Facts) peak() int {
	if f.Daemon != nil {
		return max(f.Count, f.Daemon.Peak)
	}
	return f.Count
}

// Counters of the kernel, as /proc/net/stat/nf_conntrack has them.
func counterDrop(c procfs.ConntrackStatEntry) uint64      { return c.Drop }
func counterEarlyDrop(c procfs.ConntrackStatEntry) uint64 { return c.EarlyDrop }
func counterFailed(c procfs.ConntrackStatEntry) uint64    { return c.InsertFailed }
func counterRestart(c procfs.ConntrackStatEntry) uint64   { return c.SearchRestart }
func counterInvalid(c procfs.ConntrackStatEntry) uint64   { return c.Invalid }

// judgeCounters says what the kernel's counters mean.
func judgeCounters(f *Facts) []Finding {
	if len(f.CPUs) == 0 {
		return nil
	}
	all := []Finding{judgeRefused(f)}
	if n, now := total(f.CPUs, counterEarlyDrop), f.moved(counterEarlyDrop); n+now > 0 {
		all = append(all, Finding{ID: EarlyDrops, Severity: Warning, Sure: Certain,
			Title:    fmt.Sprintf("the kernel threw %d entries out to make room", n+now),
			Evidence: f.perCPU("early_drop", counterEarlyDrop),
			Why: "the table was full, and entries that were not assured, half-open connections of real clients among " +
				"them, had to go", Do: []string{f.raise()}, Settings: f.sizes("the table was full")})
	}
	if n := total(f.CPUs, counterFailed); n > 0 {
		all = append(all, Finding{ID: LostRaces, Severity: Info, Title: fmt.Sprintf("%d entries came too late", n),
			Evidence: f.perCPU("insert_failed", counterFailed), Sure: Likely,
			Why: "two packets of one flow raced each other, as two questions of a resolver do; the loser is dropped and " +
				"sent again. Only a steady stream of them matters"})
	}
	if n := total(f.CPUs, counterRestart); n > 0 {
		all = append(all, Finding{ID: Restarts, Severity: Info, Title: fmt.Sprintf("%d lookups began anew", n),
			Evidence: f.perCPU("search_restart", counterRestart), Sure: Likely,
			Why: "entries moved to another bucket while somebody looked: usual where many come and go at once, or where " +
				"buckets are few"})
	}
	return all
}

// judgeRefused looks for connections that the kernel refused. A lost race counts as drop and as
// insert_failed, so only what drop has more is certain to be a full table's (nf_conntrack_core.c).
func judgeRefused(f *Facts) Finding {
	refused := func(c procfs.ConntrackStatEntry) uint64 { return c.Drop - min(c.Drop, c.InsertFailed) }
	n, now := total(f.CPUs, refused), f.moved(refused)
	if n+now == 0 {
		return fine(Refused, "the kernel has refused no connection since boot")
	}
	found := Finding{ID: Refused, Severity: Warning, Title: fmt.Sprintf("the kernel has refused %d connections", n+now),
		Evidence: f.perCPU("drop", counterDrop), Sure: Likely,
		Why: "the table was full, at some time since boot, and nothing in it could be thrown out", Do: []string{f.raise()},
		Settings: f.sizes("connections were refused")}
	if now > 0 {
		found.Severity, found.Sure = Critical, Certain
		found.Title = fmt.Sprintf("the kernel is refusing connections now: %d within %s", now, f.Waited)
		found.Why = "the table is full: every new connection fails"
		found.Do = f.makeRoom()
	}
	return found
}

// perCPU writes a counter by CPU.
func (f *Facts) perCPU(name string, counter func(procfs.ConntrackStatEntry) uint64) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s by CPU:", name)
	const most = 16 // as many fit on a line or two
	for i, c := range f.CPUs[:min(most, len(f.CPUs))] {
		fmt.Fprintf(&b, " %d=%d", i, counter(c))
	}
	if more := len(f.CPUs) - most; more > 0 {
		fmt.Fprintf(&b, " and %d more CPUs", more)
	}
	if f.Later != nil {
		fmt.Fprintf(&b, "; %+d within %s", f.moved(counter), f.Waited)
	}
	return b.String()
}

// judgeListing compares the count with what can be listed.
func judgeListing(f *Facts) []Finding {
	gone := f.Count - f.Table.Listed
	if !f.Loaded || !f.Table.Whole || gone < 1000 || gone*10 < f.Count {
		return nil
	}
	why := "entries past their time are counted until somebody collects them; listing them just did"
	if f.Left-f.Table.Listed > gone/2 {
		why = "they are dying or not yet confirmed: packets or programs still hold them, or they go faster than they " +
			"can be freed"
	}
	return []Finding{{ID: Uncollected, Severity: Info, Title: fmt.Sprintf("%d entries are counted but not there", gone),
		Evidence: fmt.Sprintf("count %d, listed %d, count afterwards %d", f.Count, f.Table.Listed, f.Left), Why: why,
		Sure: Likely}}
}

// watchedLong is how long a daemon has to have been there before it is said that its table is always full: one that
// was started in an attack knows nothing but that yet.
const watchedLong = time.Hour

// judgeDay says that the daemon has no calm to learn from.
func judgeDay(f *Facts) []Finding {
	if f.Daemon == nil || f.Daemon.Waits == "" || f.Daemon.Watched < watchedLong {
		return nil
	}
	return []Finding{{ID: NoOrdinaryDay, Severity: Warning, Sure: Certain,
		Title:    "the table is always so full that ctguard can't learn what is ordinary here",
		Evidence: f.Daemon.Waits, Do: []string{f.raise()},
		Why: "where nothing is known of an ordinary day nobody loses a conversation, so a flood of real connections is not " +
			"evicted"}}
}

// percent returns a share in percent; of nothing it is 0.
func percent(part, whole int) float64 {
	if whole == 0 {
		return 0
	}
	return 100 * float64(part) / float64(whole)
}
