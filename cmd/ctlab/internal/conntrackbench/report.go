package conntrackbench

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"ctguard/agent/conntrack"
)

// report writes the table, each row as soon as it is known.
type report struct {
	w   io.Writer
	err error // the first one
}

func (r *report) printf(format string, args ...any) {
	if r.err == nil {
		_, r.err = fmt.Fprintf(r.w, format, args...)
	}
}

func (r *report) begin(o Options) {
	var name unix.Utsname
	_ = unix.Uname(&name)
	buckets, _ := os.ReadFile("/proc/sys/net/netfilter/nf_conntrack_buckets")
	r.printf("%s, Linux %s, %s, %d CPUs (%s), %s hash buckets.\n", time.Now().Format(time.DateOnly),
		unix.ByteSliceToString(name.Release[:]), runtime.Version(), runtime.NumCPU(), cpuModel(),
		strings.TrimSpace(string(buckets)))
	r.printf("%d mixed entries; medians of %d interleaved pairs.\n\n", o.Entries, o.Rounds)
	r.printf("| what | measured | reach | ctguard | against |\n| --- | --- | --- | --- | --- |\n")
}

func (r *report) row(what, measured, reach string, ours, against time.Duration) {
	show := func(d time.Duration) string {
		if d == 0 {
			return "–"
		}
		return d.String()
	}
	r.printf("| %s | %s | %s | %s | %s |\n", what, measured, reach, show(ours), show(against))
}

// cpuModel is the processor's name, or its architecture.
func cpuModel() string {
	f, err := os.Open("/proc/cpuinfo")
	if err != nil {
		return runtime.GOARCH
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if name, value, ok := strings.Cut(lines.Text(), ":"); ok && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return runtime.GOARCH
}

// Child scans the table of the namespace it is started in and writes its own peak memory in KiB
// (VmHWM, proc(5)), and what the scan told apart.
func Child(ctx context.Context, w io.Writer) error {
	table, err := conntrack.Open()
	if err != nil {
		return err
	}
	defer table.Close()
	c, err := table.Scan(ctx, conntrack.ScanOptions{})
	if err != nil {
		return err
	}
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return fmt.Errorf("read own memory: %w", err)
	}
	_, after, ok := strings.Cut(string(status), "VmHWM:")
	if !ok {
		return fmt.Errorf("read own memory: no VmHWM in /proc/self/status")
	}
	_, err = fmt.Fprintf(w, "%s %d seen, %d listed, %d told apart\n", strings.Fields(after)[0], c.Seen, len(c.Sources),
		c.Distinct)
	return err
}
