package lab

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"ctguard/cmd/ctlab/internal/measure"
	"ctguard/cmd/ctlab/internal/ns"
	"ctguard/cmd/ctlab/internal/role"
)

// sampleEvery is how often the table is looked at.
const sampleEvery = 100 * time.Millisecond

const (
	countFile = "/proc/sys/net/netfilter/nf_conntrack_count"
	statFile  = "/proc/thread-self/net/stat/nf_conntrack"
)

// ErrDisturbed says that somebody else changed the size of the table during a run.
var ErrDisturbed = errors.New("the run was disturbed from outside, its figures would mean nothing")

// sampler records the state of the table until its context ends.
type sampler struct {
	space    *ns.Namespace
	capacity int
	level    func() int
	onSample func(measure.Sample)

	samples []measure.Sample
}

func (s *sampler) run(ctx context.Context, zero role.Instant) error {
	first, err := readCounters(s.space)
	if err != nil {
		return err
	}
	for i := 0; role.WaitUntil(ctx, zero.Add(time.Duration(i)*sampleEvery)) == nil; i++ {
		c, err := readCounters(s.space)
		if err != nil {
			return err
		}
		if c.limit != s.capacity {
			return fmt.Errorf("%w: nf_conntrack_max became %d", ErrDisturbed, c.limit)
		}
		m := measure.Sample{
			Seconds: zero.Since().Seconds(), Count: c.count, Fill: 100 * float64(c.count) / float64(s.capacity),
			Level: s.level(), Drops: c.drops - first.drops, EarlyDrops: c.early - first.early,
		}
		s.samples = append(s.samples, m)
		s.onSample(m)
	}
	return nil
}

type counters struct {
	count, limit int
	drops, early uint64
}

func readCounters(n *ns.Namespace) (counters, error) {
	var c counters
	err := n.Do(func() error {
		var err error
		if c.count, err = readNumber(countFile); err != nil {
			return err
		}
		if c.limit, err = readNumber(maxSetting); err != nil {
			return err
		}
		return c.readStat()
	})
	return c, err
}

func readNumber(path string) (int, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		return 0, fmt.Errorf("read %s: %w", path, err)
	}
	return n, nil
}

// readStat adds up the per-CPU counters: a line of names, then a line of
// hexadecimal values for each CPU.
func (c *counters) readStat() error {
	f, err := os.Open(statFile)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // read only
	sc := bufio.NewScanner(f)
	var names []string
	for sc.Scan() {
		fields := strings.Fields(sc.Text())
		if names == nil {
			names = fields
			continue
		}
		for i, v := range fields[:min(len(fields), len(names))] {
			n, err := strconv.ParseUint(v, 16, 64)
			if err != nil {
				return fmt.Errorf("read %s: %w", statFile, err)
			}
			switch names[i] {
			case "drop", "insert_failed":
				c.drops += n
			case "early_drop":
				c.early += n
			}
		}
	}
	return sc.Err()
}
