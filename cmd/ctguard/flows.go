package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"ctguard/agent/config"
	"ctguard/agent/conntrack"
	"ctguard/agent/state"
	"ctguard/agent/sysctl"
)

// entryFlags are the filters that `ctguard flows` and `ctguard evict` share.
type entryFlags struct {
	source, destination, protocol, state string
	port                                 uint16
	ipv4, ipv6                           bool
	zone, mark                           string
	unreplied, assured, nat              bool
	silent                               time.Duration
}

func (f *entryFlags) add(c *cobra.Command) {
	fs := c.Flags()
	fs.StringVarP(&f.source, "source", "s", "", "only entries with an original source in this prefix")
	fs.StringVarP(&f.destination, "destination", "d", "", "only entries with an original destination in this prefix")
	fs.StringVarP(&f.protocol, "protocol", "p", "", "only this protocol: a name such as tcp, or a number")
	fs.Uint16Var(&f.port, "port", 0, "only entries to this destination port")
	fs.StringVar(&f.state, "state", "", "only entries in this state, such as TIME_WAIT")
	fs.BoolVarP(&f.ipv4, "ipv4", "4", false, "only IPv4")
	fs.BoolVarP(&f.ipv6, "ipv6", "6", false, "only IPv6")
	fs.StringVar(&f.zone, "zone", "", "only entries of this conntrack zone")
	fs.StringVar(&f.mark, "mark", "", "only entries with this connection mark (decimal or 0x…)")
	fs.BoolVar(&f.unreplied, "unreplied", false,
		"only entries that no answer came to (--unreplied=false: only those with one)")
	fs.BoolVar(&f.assured, "assured", false, "only assured entries (--assured=false: only those that are not)")
	fs.BoolVar(&f.nat, "nat", false, "only translated entries (--nat=false: only those that are not)")
	fs.DurationVar(&f.silent, "silent", 0, "only entries without a packet for this long")
}

// given returns how many filters the command line has.
func (f *entryFlags) given(c *cobra.Command) (n int) {
	var own cobra.Command
	new(entryFlags).add(&own)
	own.Flags().VisitAll(func(flag *pflag.Flag) {
		if c.Flags().Changed(flag.Name) {
			n++
		}
	})
	return n
}

// filter turns the flags into a filter. either is a prefix that one of the ends must be in; it may be empty.
func (f *entryFlags) filter(c *cobra.Command, either string) (filter conntrack.EntryFilter, err error) {
	for _, one := range []struct {
		text string
		to   *netip.Prefix
	}{{either, &filter.Either}, {f.source, &filter.Source}, {f.destination, &filter.Destination}} {
		if one.text == "" {
			continue
		}
		if *one.to, err = config.ParsePrefix(one.text); err != nil {
			return filter, usage(err, c.CommandPath()+" 198.51.100.0/24")
		}
	}
	if filter.Protocol, err = protocolNumber(f.protocol); err != nil {
		return filter, err
	}
	if filter.Zone, err = number[uint16](f.zone, 16, "zone"); err != nil {
		return filter, err
	}
	if filter.Mark, err = number[uint32](f.mark, 32, "mark"); err != nil {
		return filter, err
	}
	switch {
	case f.ipv4 && f.ipv6:
		return filter, usage(errors.New("-4 and -6 exclude each other"), c.CommandPath()+" --help")
	case f.ipv4:
		filter.Family = unix.AF_INET
	case f.ipv6:
		filter.Family = unix.AF_INET6
	}
	filter.Port, filter.State, filter.Silent = f.port, strings.ToUpper(f.state), f.silent
	given := func(name string, value bool) *bool {
		if !c.Flags().Changed(name) {
			return nil
		}
		return &value
	}
	filter.Replied = given("unreplied", !f.unreplied)
	filter.Assured, filter.Translated = given("assured", f.assured), given("nat", f.nat)
	return filter, nil
}

// protocolNumber reads a protocol; none is 0.
func protocolNumber(text string) (uint8, error) {
	if n, ok := conntrack.Protocols[text]; ok || text == "" {
		return n, nil
	}
	n, err := strconv.ParseUint(text, 10, 8)
	if err != nil {
		return 0, usage(fmt.Errorf("%q is no protocol", text), "a name such as tcp, udp or icmp, or a number")
	}
	return uint8(n), nil
}

// number reads a number that may be absent.
func number[T uint16 | uint32](text string, bits int, what string) (*T, error) {
	if text == "" {
		return nil, nil
	}
	n, err := strconv.ParseUint(text, 0, bits)
	if err != nil {
		return nil, usage(fmt.Errorf("%q is no %s", text, what), "a number, decimal or with 0x before it")
	}
	value := T(n)
	return &value, nil
}

// flowReport is one line of `ctguard flows --json`. Field names are stable.
type flowReport struct {
	Protocol         string  `json:"protocol"`
	State            string  `json:"state,omitempty"`
	Source           string  `json:"source"`
	Destination      string  `json:"destination"`
	ReplySource      string  `json:"reply_source"`
	ReplyDestination string  `json:"reply_destination"`
	Replied          bool    `json:"replied"`
	Assured          bool    `json:"assured"`
	NAT              bool    `json:"nat"`
	Helper           bool    `json:"helper"`
	Offloaded        bool    `json:"offloaded"`
	Zone             uint16  `json:"zone"`
	Mark             uint32  `json:"mark"`
	LeftSeconds      float64 `json:"left_seconds"`
	SilentSeconds    float64 `json:"silent_seconds"` // -1 where that is not known
	ID               uint32  `json:"id"`
}

// endpoint writes an end of an entry: without a port where its protocol has none.
func endpoint(e netip.AddrPort) string {
	if e.Port() == 0 {
		return e.Addr().String()
	}
	return e.String()
}

func newFlowReport(e conntrack.Entry) flowReport {
	return flowReport{
		Protocol: conntrack.ProtocolName(e.Protocol), State: e.State,
		Source: endpoint(e.Source), Destination: endpoint(e.Destination),
		ReplySource: endpoint(e.ReplySource), ReplyDestination: endpoint(e.ReplyDestination),
		Replied: e.Replied, Assured: e.Assured, NAT: e.Translated, Helper: e.Helped, Offloaded: e.Offloaded,
		Zone: e.Zone, Mark: e.Mark, LeftSeconds: e.Left.Seconds(), SilentSeconds: max(-1, e.Silent.Seconds()), ID: e.ID,
	}
}

// words says what is special about an entry.
func (r flowReport) words() string {
	var list []string
	for _, one := range []struct {
		on   bool
		word string
	}{
		{r.Assured, "assured"}, {!r.Replied, "unreplied"}, {r.NAT, "nat"}, {r.Helper, "helper"}, {r.Offloaded, "offloaded"},
		{r.Zone != 0, fmt.Sprintf("zone=%d", r.Zone)}, {r.Mark != 0, fmt.Sprintf("mark=%#x", r.Mark)},
	} {
		if one.on {
			list = append(list, one.word)
		}
	}
	return strings.Join(list, " ")
}

// span writes a number of seconds for people.
func span(seconds float64) string {
	if seconds < 0 {
		return "?"
	}
	return (time.Duration(seconds) * time.Second).String()
}

func (p *program) flowsCommand() *cobra.Command {
	var f entryFlags
	var n int
	var asJSON, count bool
	var order string
	c := &cobra.Command{
		Use:   "flows [PREFIX]",
		Short: "show the entries of the table; PREFIX is one of their ends",
		Example: "  ctguard flows 198.51.100.7\n  ctguard flows -p tcp --state TIME_WAIT --count\n" +
			"  ctguard flows --silent 1h --assured --json\n  ctguard flows --sort silent -n 20",
		Args: cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if n < 0 {
				return usage(fmt.Errorf("-n %d is below 0", n), "")
			}
			if order != "" && orders[order] == nil {
				return usage(fmt.Errorf("--sort %s is unknown", order), "write one of "+strings.Join(orderNames(), " "))
			}
			filter, err := f.filter(c, strings.Join(args, ""))
			if err != nil {
				return err
			}
			conf, err := p.inside(c.Context())
			if err != nil {
				return err
			}
			if err := tellSilence(&filter, conf); err != nil {
				return err
			}
			table, err := conntrack.Open()
			if err != nil {
				return err
			}
			defer table.Close()
			l := &lister{out: c.OutOrStdout(), most: n, asJSON: asJSON, silent: count}
			if order == "" || count {
				return l.end(table.Entries(c.Context(), filter, l.add))
			}
			first := &best{order: orders[order], n: cmp.Or(n, sortedUnasked)}
			err = table.Entries(c.Context(), filter, func(e conntrack.Entry) bool { first.add(e); return true })
			for _, e := range first.cut() {
				l.add(e)
			}
			return l.end(err)
		},
	}
	f.add(c)
	c.Flags().IntVarP(&n, "number", "n", 0,
		fmt.Sprintf("end after so many (default all; sorted the first %d)", sortedUnasked))
	c.Flags().StringVar(&order, "sort", "", "what to sort by: "+strings.Join(orderNames(), " ")+
		"; the longest silent, or left, first")
	c.Flags().BoolVar(&count, "count", false, "print only how many there are")
	c.Flags().BoolVar(&asJSON, "json", false, "print one JSON object a line")
	return c
}

// timeouts returns the settings in force, from which it is told how long entries have been silent.
func timeouts() (map[string]int, error) {
	s, err := sysctl.NewSettings("/proc")
	if err != nil {
		return nil, err
	}
	return s.All()
}

// tellSilence has a filter tell how long entries have been silent, from the settings in force and from what a daemon
// gave to entries that may be there still. Without knowing that it tells nothing; whoever asks for it gets an error.
func tellSilence(filter *conntrack.EntryFilter, conf config.Config) error {
	given, fault := state.At(conf.StateDir).Retimed(time.Now())
	switch {
	case fault != nil && filter.Silent > 0:
		return fmt.Errorf("how long entries have been silent can't be told: %w", fault)
	case fault == nil:
		inForce, err := timeouts()
		filter.Timeouts, filter.Retimed = inForce, given
		return err
	}
	return nil
}

// lister prints entries as they come, in columns as wide as the first screenful needs.
type lister struct {
	out    io.Writer
	most   int
	asJSON bool
	silent bool // only count
	n      int
	table  *tabwriter.Writer
	err    error
}

// screenful is how many lines share the width of their columns.
const screenful = 50

func (l *lister) add(e conntrack.Entry) bool {
	l.n++
	r := newFlowReport(e)
	switch {
	case l.silent:
	case l.asJSON:
		l.err = newEncoder(l.out).Encode(r)
	default:
		if l.table == nil {
			l.table = tabwriter.NewWriter(l.out, 0, 4, 2, ' ', 0)
			fmt.Fprintln(l.table, "proto\tstate\tsource\tdestination\tleft\tsilent\t")
		}
		_, l.err = fmt.Fprintf(l.table, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", r.Protocol, r.State, r.Source, r.Destination,
			span(r.LeftSeconds), span(r.SilentSeconds), r.words())
		if l.n%screenful == 0 {
			l.err = l.table.Flush()
		}
	}
	return l.err == nil && (l.most == 0 || l.n < l.most)
}

func (l *lister) end(err error) error {
	if l.table != nil {
		l.table.Flush()
	}
	switch {
	case l.silent && l.asJSON:
		err = errors.Join(err, newEncoder(l.out).Encode(map[string]int{"entries": l.n}))
	case l.silent:
		fmt.Fprintln(l.out, l.n)
	}
	if l.err != nil {
		return l.err
	}
	return err
}
