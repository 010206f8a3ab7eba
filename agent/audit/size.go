package audit

import "fmt"

// What a table may take, and how a kernel makes its own: nf_conntrack_init_start in
// net/netfilter/nf_conntrack_core.c, since Linux 5.15.
const (
	memoryShare   = 25 // percent of the memory that a full table may take
	perBucket     = 4  // entries a bucket at most: what kernels before 5.15 made of theirs
	bytesToBucket = 16384 * 8
	gib           = 1 << 30
)

// kernelDefault returns the limit that a kernel gives a machine of so many bytes.
func kernelDefault(memory int) int {
	switch {
	case memory > 4*gib:
		return 262144
	case memory > gib:
		return 65536
	}
	return max(1024, memory/bytesToBucket)
}

// bytes returns what a table of so many entries takes when it is full.
func (f *Facts) bytes(entries, buckets int) int {
	return entries*f.Memory.Entry + buckets*f.Memory.Bucket
}

// mib returns bytes in MiB, rounded up.
func mib(bytes int) int { return (bytes + 1<<20 - 1) >> 20 }

// room returns how many entries fit a quarter of the memory.
func (f *Facts) room() int {
	return f.Memory.Total / 100 * memoryShare / max(1, f.Memory.Entry+f.Memory.Bucket)
}

// wanted returns the limit that would be right: the peak and half as much again, rounded up to a power of two, not
// below what the kernel would take nor what there is, within the memory.
func (f *Facts) wanted() int {
	n := 1024
	for n < f.peak()+f.peak()/2 {
		n *= 2
	}
	n = max(n, f.limit(), kernelDefault(f.Memory.Total))
	if f.Memory.Total > 0 {
		n = min(n, max(f.room(), f.limit()))
	}
	return n
}

// sizes are the settings of the right limit.
func (f *Facts) sizes(why string) []Setting {
	n := f.wanted()
	list := []Setting{{"nf_conntrack_max", n, why}}
	if f.buckets() < n {
		list = append(list, Setting{"nf_conntrack_buckets", n, "one bucket an entry keeps lookups short"})
	}
	return list
}

// raise is the command that makes the limit right, and what it costs.
func (f *Facts) raise() string {
	n := f.wanted()
	if n <= f.limit() {
		return "# a larger table does not fit this machine: find out who fills it"
	}
	cost := mib(f.bytes(n, max(n, f.buckets())))
	return fmt.Sprintf("sysctl -w net.netfilter.nf_conntrack_max=%d  # %d MiB when it is full%s", n, cost, f.there(", "))
}

// there says where a setting of all namespaces can be changed.
func (f *Facts) there(before string) string {
	if f.Shared {
		return before + "in the initial network namespace: it is shared by all"
	}
	return ""
}

// judgeSize compares the limit with the memory.
func judgeSize(f *Facts) []Finding {
	if !f.Loaded || f.limit() == 0 || f.Memory.Total == 0 {
		return nil
	}
	bytes, usual := f.bytes(f.limit(), f.buckets()), kernelDefault(f.Memory.Total)
	evidence := fmt.Sprintf("nf_conntrack_max %d takes %d MiB when it is full, %.1f %% of %d MiB (%d bytes an entry)",
		f.limit(), bytes>>20, percent(bytes, f.Memory.Total), f.Memory.Total>>20, f.Memory.Entry)
	switch {
	case percent(bytes, f.Memory.Total) > memoryShare:
		return []Finding{{ID: MaxHigh, Severity: Warning, Title: "a full table takes more memory than this machine can spare",
			Evidence: evidence, Why: "entries are kernel memory, which can't be swapped out: all else gets short of it",
			Do: []string{fmt.Sprintf("sysctl -w net.netfilter.nf_conntrack_max=%d%s", f.room(), f.there("  # "))}, Sure: Likely,
			Settings: []Setting{{"nf_conntrack_max", f.room(), "a quarter of the memory"}}}}
	case f.limit() < usual:
		return []Finding{{ID: MaxLow, Severity: Warning, Sure: Certain,
			Title:    fmt.Sprintf("the limit of %d entries is low for this machine", f.limit()),
			Evidence: fmt.Sprintf("%s; a kernel since Linux 5.15 takes %d by itself", evidence, usual),
			Why:      "the table fills sooner than it has to: memory for more is there", Do: []string{f.raise()},
			Settings: f.sizes("what the kernel gives a machine of this memory")}}
	}
	return []Finding{fine(MaxLow, "%s", evidence)}
}

// judgeBuckets compares the hash table with the limit.
func judgeBuckets(f *Facts) []Finding {
	if !f.Loaded || f.buckets() == 0 {
		return nil
	}
	load := float64(f.limit()) / float64(f.buckets())
	if load <= perBucket {
		return []Finding{fine(Buckets, "%d buckets: %.1f entries each when the table is full", f.buckets(), load)}
	}
	return []Finding{{ID: Buckets, Severity: Warning,
		Title:    fmt.Sprintf("%.0f entries share a bucket when the table is full", load),
		Evidence: fmt.Sprintf("nf_conntrack_max %d, nf_conntrack_buckets %d", f.limit(), f.buckets()),
		Why: "each packet looks through its bucket, and a full table makes room only in the bucket of the newcomer; " +
			"somebody raised the one without the other",
		Do: []string{fmt.Sprintf("sysctl -w net.netfilter.nf_conntrack_buckets=%d  # %d MiB%s", f.limit(),
			mib(f.limit()*max(8, f.Memory.Bucket)), f.there(", ")),
			fmt.Sprintf("echo %d > /sys/module/nf_conntrack/parameters/hashsize  # before Linux 4.9", f.limit())},
		Sure: Certain, Settings: []Setting{{"nf_conntrack_buckets", f.limit(), "one bucket an entry keeps lookups short"}}}}
}
