package conntrackbench

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"time"

	ctlib "github.com/ti-mo/conntrack"

	"ctguard/agent/conntrack"
	"ctguard/policy"
)

func (b *bench) unread() error {
	_, err := unreadDump(b.buf)
	return err
}

func (b *bench) scan() error {
	c, err := b.table.Scan(b.ctx, conntrack.ScanOptions{})
	if err == nil && !c.Whole {
		err = errors.New("the whole scan was not whole")
	}
	return err
}

func (b *bench) library() error {
	c, err := ctlib.Dial(nil)
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = c.Dump(nil)
	return err
}

// shell runs a command line in the benchmark's namespace; its output is not of interest.
func (b *bench) shell(line string) error {
	out, err := exec.CommandContext(b.ctx, "sh", "-c", line).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", line, err, bytes.TrimSpace(out))
	}
	return nil
}

// pipeline counts entries by source as operators do.
func (b *bench) pipeline() error {
	return b.shell(`{ conntrack -L; conntrack -L -f ipv6; } 2>/dev/null |
		awk '{ for (i = 1; i <= NF; i++) if ($i ~ /^src=/) { print $i; break } }' | sort | uniq -c >/dev/null`)
}

// whole: the scan of everything against an unread dump, the library and the pipeline.
func (b *bench) whole() error {
	if err := b.fill(b.Entries, b.mixed()); err != nil {
		return err
	}
	var before, after runtime.MemStats
	if err := b.scan(); err != nil { // the first one makes what later ones reuse
		return err
	}
	runtime.ReadMemStats(&before)
	if err := b.scan(); err != nil {
		return err
	}
	runtime.ReadMemStats(&after)
	ours, dump, err := b.pairs(b.scan, b.unread, nil)
	if err != nil {
		return err
	}
	b.report.row("whole scan, against an unread dump", fmt.Sprintf("%.2f ×", ratio(ours, dump)), "≤ 1.10 ×",
		median(ours), median(dump))
	ours, lib, err := b.pairs(b.scan, b.library, nil)
	if err != nil {
		return err
	}
	b.report.row("whole scan, against ti-mo/conntrack Dump", fmt.Sprintf("%.1f × faster", ratio(lib, ours)), "≥ 4 ×",
		median(ours), median(lib))
	ours, pipe, err := b.pairs(b.scan, b.pipeline, nil)
	if err != nil {
		return err
	}
	b.report.row("whole scan, against conntrack -L \\| awk \\| sort \\| uniq -c",
		fmt.Sprintf("%.1f × faster", ratio(pipe, ours)), "≥ 1.8 ×", median(ours), median(pipe))
	allocs := after.Mallocs - before.Mallocs
	b.report.row("allocations of a whole scan", fmt.Sprintf("%d, %.4f an entry", allocs,
		float64(allocs)/float64(b.Entries)), "0 an entry", 0, 0)
	return nil
}

// sample: the sampled scan against the whole dump, at the full and at a fifth of the size.
func (b *bench) sample() error {
	if err := b.fill(b.Entries, b.mixed()); err != nil {
		return err
	}
	sample := func() error {
		_, err := b.table.Scan(b.ctx, conntrack.ScanOptions{Limit: conntrack.SampleSize})
		return err
	}
	ours, dump, err := b.pairs(sample, b.unread, nil)
	if err != nil {
		return err
	}
	b.report.row(fmt.Sprintf("sampled scan (%d entries), against an unread dump", conntrack.SampleSize),
		fmt.Sprintf("%.1f %%", 100*ratio(ours, dump)), "≤ 3 %", median(ours), median(dump))
	if err := b.fill(b.Entries/5, others(b.Entries/5, b.Entries/25)); err != nil {
		return err
	}
	small, _, err := b.pairs(sample, b.unread, nil)
	if err != nil {
		return err
	}
	b.report.row("sampled scan of a table a fifth as large",
		fmt.Sprintf("%.2f ×", float64(median(small))/float64(median(ours))), "about 1 ×", median(small), median(ours))
	return nil
}

// retime: shorter timeouts for about half of the table, again and again a little shorter.
func (b *bench) retime() error {
	if err := b.fill(b.Entries, b.mixed()); err != nil {
		return err
	}
	timeout, changed := 300_000, 0
	retime := func() (err error) {
		timeout -= 1000
		timeouts := map[string]int{"nf_conntrack_tcp_timeout_established": timeout}
		changed, err = b.table.Retime(b.ctx, conntrack.Retiming{Timeouts: timeouts})
		return err
	}
	ours, dump, err := b.pairs(retime, b.unread, nil)
	if err != nil {
		return err
	}
	b.report.row(fmt.Sprintf("retime %d entries, against an unread dump", changed),
		fmt.Sprintf("%.2f ×", ratio(ours, dump)), "≤ 1.6 ×", median(ours), median(dump))
	return nil
}

func heavyCaps(keep int) (caps []policy.Cap) {
	for i := range heavySources {
		caps = append(caps, policy.Cap{Prefix: heavySource(i), Keep: keep})
	}
	return caps
}

// refill makes the heavy sources' entries again.
func (b *bench) refill() error { return b.complete(b.Entries, heavy) }

// evictMany: the excess of the heavy sources in one pass, against conntrack -D for each.
func (b *bench) evictMany() error {
	if err := b.fill(b.Entries, b.mixed()); err != nil {
		return err
	}
	const keep = 1000
	evict := func() error {
		got, err := b.table.Evict(b.ctx, conntrack.Eviction{Caps: heavyCaps(keep)})
		if want := heavySources * (heavyEntries - keep); err == nil && got != want {
			err = fmt.Errorf("evicted %d entries, want %d", got, want)
		}
		return err
	}
	ours, dump, err := b.pairs(evict, b.unread, b.refill)
	if err != nil {
		return err
	}
	b.report.row(fmt.Sprintf("evict the excess of %d sources with %d entries each, against an unread dump", heavySources,
		heavyEntries),
		fmt.Sprintf("%.2f ×", ratio(ours, dump)), "≤ 1.35 ×", median(ours), median(dump))
	theirs := make([]time.Duration, 0, b.Rounds)
	for range b.Rounds {
		took, err := timed(b.program)
		if err != nil {
			return err
		}
		theirs = append(theirs, took)
		if err := b.refill(); err != nil {
			return err
		}
	}
	b.report.row("the same, against conntrack -D -s ten times", fmt.Sprintf("%.1f × faster", ratio(theirs, ours)),
		"≥ 8 ×", median(ours), median(theirs))
	return nil
}

// program evicts the heavy sources as operators do.
func (b *bench) program() error {
	for i := range heavySources {
		family, source := "", heavySource(i)
		if source.Addr().Is6() {
			family = "-f ipv6 "
		}
		if err := b.shell("conntrack -D " + family + "-s " + source.String() + " >/dev/null"); err != nil {
			return err
		}
	}
	return nil
}

// evictOne: everything of one source, and the same by the operator's command, from its start to its end.
func (b *bench) evictOne() error {
	if err := b.fill(b.Entries, b.mixed()); err != nil {
		return err
	}
	evict := func() error {
		n, err := b.table.Remove(b.ctx, conntrack.EntryFilter{Source: heavySource(0)}, nil, false, nil)
		if err == nil && n != heavyEntries {
			err = fmt.Errorf("evicted %d entries of one source, want %d", n, heavyEntries)
		}
		return err
	}
	ours, dump, err := b.pairs(evict, b.unread, b.refill)
	if err != nil {
		return err
	}
	b.report.row("evict one source, against an unread dump", fmt.Sprintf("%.2f ×", ratio(ours, dump)), "≤ 0.30 ×",
		median(ours), median(dump))
	if b.CTGuard == "" {
		return nil
	}
	if ours, dump, err = b.pairs(b.evictCommand, b.unread, b.refill); err != nil {
		return err
	}
	b.report.row("`ctguard evict ADDRESS`, the whole command, against an unread dump",
		fmt.Sprintf("%.2f ×", ratio(ours, dump)), "≤ 0.30 ×", median(ours), median(dump))
	return nil
}

// evictCommand has the program evict the first heavy source, and tell how much that was.
func (b *bench) evictCommand() error {
	cmd := exec.CommandContext(b.ctx, b.CTGuard, "evict", heavySource(0).Addr().String(), "--json", "--config", os.DevNull)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("ctguard evict: %w", err)
	}
	var said struct{ Entries int }
	if err = json.Unmarshal(out, &said); err == nil && said.Entries != heavyEntries {
		err = fmt.Errorf("ctguard evict deleted %d entries, want %d", said.Entries, heavyEntries)
	}
	return err
}

// memory: the peak of a process that does nothing but one scan.
func (b *bench) memory() error {
	if len(b.Child) == 0 {
		return nil
	}
	for _, c := range []struct{ sources, reach int }{{b.Entries / 5, 48}, {b.Entries, 64}} {
		flows := spoofed(b.Entries)
		if c.sources < b.Entries {
			flows = others(b.Entries, c.sources)
		}
		if err := b.fill(b.Entries, flows); err != nil {
			return err
		}
		cmd := exec.CommandContext(b.ctx, b.Child[0], b.Child[1:]...)
		cmd.Stderr = os.Stderr
		out, err := cmd.Output()
		if err != nil {
			return fmt.Errorf("scan in a process of its own: %w", err)
		}
		said := strings.SplitN(strings.TrimSpace(string(out)), " ", 2)
		kib, err := strconv.Atoi(said[0])
		if err != nil || len(said) < 2 {
			return fmt.Errorf("scan in a process of its own: it said %q", out)
		}
		b.report.row(fmt.Sprintf("peak memory of a whole scan, %d distinct sources (%s)", c.sources, said[1]),
			fmt.Sprintf("%.0f MiB", float64(kib)/1024), fmt.Sprintf("≤ %d MiB", c.reach), 0, 0)
	}
	return nil
}

// find: how often a sampled scan misses a source that holds one entry in a hundred.
func (b *bench) find() error {
	missed, tried, low := 0, 0, 1.0
	for round := 0; tried < b.Trials; round++ {
		n := b.Entries / 5
		if err := b.fill(n, onePercent(n, round)); err != nil {
			return err
		}
		c, err := b.table.Scan(b.ctx, conntrack.ScanOptions{Limit: conntrack.SampleSize})
		if err != nil {
			return err
		}
		listed := make(map[netip.Prefix]int)
		for _, h := range c.Sources {
			listed[h.Prefix] = h.Entries
		}
		for i := range 50 {
			tried++
			seen, ok := listed[netip.PrefixFrom(v4(10, i), 32)]
			if !ok {
				missed++
				continue
			}
			_, bound, _ := c.Estimate(seen)
			low = min(low, float64(bound)/float64(n))
		}
	}
	b.report.row(fmt.Sprintf("sources of 1 %% that a sampled scan missed, of %d (least lower bound: %.2f %%)", tried,
		100*low),
		strconv.Itoa(missed), "≤ 1 in 1000", 0, 0)
	return nil
}
