package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"ctguard/agent/record"
	"ctguard/agent/survey"
)

// sizeReport is what `ctguard size --json` prints. Field names are stable.
type sizeReport struct {
	Entries      int     `json:"entries"`           // net.netfilter.nf_conntrack_max
	Buckets      int     `json:"buckets"`           // net.netfilter.nf_conntrack_buckets
	Bytes        int     `json:"bytes"`             // with the table full
	EntryBytes   int     `json:"bytes_per_entry"`   // on this machine, buckets apart
	MemoryBytes  int     `json:"memory_bytes"`      // of this machine
	MemoryShare  float64 `json:"memory_percent"`    // of it that a full table takes
	Now          int     `json:"current_entries"`   // nf_conntrack_max as it is
	NowBuckets   int     `json:"current_buckets"`   // nf_conntrack_buckets as it is
	Fits         bool    `json:"fits"`              // a full table takes at most a quarter of the memory
	PerUserFlows int     `json:"flows_per_user"`    // what was asked for
	Headroom     float64 `json:"headroom_percent"`  // likewise
	Peak         int     `json:"peak_without_room"` // what must fit before headroom
}

// mostMemory is the part of the memory in percent that a full table may take for a size to be called good.
const mostMemory = 25

func (p *program) sizeCommand() *cobra.Command {
	var users, flows, peak int
	var recording string
	var headroom float64
	var asJSON bool
	c := &cobra.Command{
		Use:   "size",
		Short: "work out how large the table should be, and what it costs",
		Long: "Size multiplies users and flows, or takes the most entries that you have seen, adds headroom and says\n" +
			"which settings that makes and what a full table costs on this machine. Without either it takes the most that\n" +
			"the daemon has seen, or with --recording the most of a recording.",
		Example: "  ctguard size --users 500 --flows 300\n  ctguard size --peak 180000 --headroom 100\n  ctguard size\n" +
			"  ctguard size --recording attack.gz",
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			switch {
			case users < 0 || flows < 1 || peak < 0 || headroom < 0 || headroom > 1000:
				return usage(errors.New("numbers must be above 0, and --headroom at most 1000"), c.CommandPath()+" --help")
			case users > 1<<30/flows:
				return usage(fmt.Errorf("%d users with %d flows each are more than a table can have", users, flows), "")
			}
			if peak == 0 && users == 0 {
				var err error
				if peak, err = p.seen(c.Context(), recording); err != nil {
					return err
				}
			}
			r, err := newSizeReport(survey.New("/"), max(peak, users*flows), headroom)
			if err != nil {
				return err
			}
			r.PerUserFlows = flows
			return show(c.OutOrStdout(), asJSON, r, func(w io.Writer) { printSize(w, r) })
		},
	}
	fs := c.Flags()
	fs.IntVar(&users, "users", 0, "how many users, hosts or clients there are at a time")
	fs.IntVar(&flows, "flows", 300,
		"flows that one of them has at a time: a browser 100 to 300, a peer-to-peer client 1 000")
	fs.IntVar(&peak, "peak", 0, "the most entries that were seen, instead of users and flows")
	fs.StringVar(&recording, "recording", "", "take the most entries of what ctguard run --record wrote")
	c.MarkFlagsMutuallyExclusive("users", "peak", "recording")
	fs.Float64Var(&headroom, "headroom", 50, "percent on top of that")
	fs.BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

// seen returns the most entries of a recording or, without one, the most that the daemon has seen.
func (p *program) seen(ctx context.Context, recording string) (peak int, err error) {
	if recording != "" {
		f, err := os.Open(recording)
		if err != nil {
			return 0, usage(err, "ctguard run --record FILE makes one")
		}
		defer f.Close()
		err = record.Replay(f, nil, func(t record.Tick) { peak = max(peak, t.Observation.Count) })
		return peak, err
	}
	if h, ok := p.highest(ctx); ok && h.Count > 0 {
		return h.Count, nil
	}
	return 0, usage(errors.New("say how many users there are, or how many entries you have seen: no daemon tells"),
		"ctguard size --users 500 --flows 300, or ctguard size --peak 180000")
}

// newSizeReport works a size out. Entries are rounded up to a power of two, as the kernel's own defaults are, and
// there are as many buckets as entries, as since Linux 5.15 (nf_conntrack_init_start).
func newSizeReport(h *survey.Host, peak int, headroom float64) (sizeReport, error) {
	wanted := float64(peak) * (1 + headroom/100)
	entries := 1 << 14
	for float64(entries) < wanted {
		entries *= 2
	}
	r := sizeReport{Entries: entries, Buckets: entries, Headroom: headroom, Peak: peak}
	m, err := h.Memory()
	if err != nil {
		return r, err
	}
	r.EntryBytes, r.MemoryBytes = m.Entry, m.Total
	r.Bytes = entries*m.Entry + r.Buckets*m.Bucket
	r.MemoryShare = 100 * float64(r.Bytes) / float64(m.Total)
	r.Fits = r.MemoryShare <= mostMemory
	now, err := timeouts()
	if err != nil {
		return r, err
	}
	r.Now, r.NowBuckets = now["nf_conntrack_max"], now["nf_conntrack_buckets"]
	return r, nil
}

func printSize(w io.Writer, r sizeReport) {
	fmt.Fprintf(w, "%d entries at the peak, %.0f %% headroom: a table of %d entries\n\n", r.Peak, r.Headroom, r.Entries)
	fmt.Fprintf(w, "  net.netfilter.nf_conntrack_max = %d\n  net.netfilter.nf_conntrack_buckets = %d\n\n", r.Entries,
		r.Buckets)
	fmt.Fprintf(w, "A full table takes %d MiB, %.1f %% of this machine's memory (%d bytes an entry).\n",
		(r.Bytes+1<<20-1)>>20, r.MemoryShare, r.EntryBytes)
	switch {
	case !r.Fits:
		fmt.Fprintf(w, "That is more than a quarter of it: use a larger machine, or fewer users on this one.\n")
	case r.Now >= r.Entries:
		fmt.Fprintf(w, "The table has room for %d entries now: nothing to do.\n", r.Now)
	default:
		fmt.Fprintf(w, "The table has room for %d entries now. To keep the new size: put the two lines into\n"+
			"/etc/sysctl.d/90-conntrack.conf and run sysctl --system.\n", r.Now)
	}
}
