package agent

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"ctguard/agent/conntrack"
	"ctguard/agent/survey"
	"ctguard/agent/sysctl"
	"ctguard/nft"
	"ctguard/policy"
)

// entries changes entries of the table; *conntrack.Table does.
type entries interface {
	Evict(context.Context, conntrack.Eviction) (int, error)
	Retime(context.Context, conntrack.Retiming) (int, error)
	Adopt(context.Context, []conntrack.Flow, *rate.Limiter) (int, error)
	AdoptForwarded(context.Context, []conntrack.ForwardedFlow, *rate.Limiter) (int, error)
	Loosen(context.Context, []netip.AddrPort, *rate.Limiter) (int, error)
	Purge(ctx context.Context, p policy.Purge, of conntrack.Parties, r *rate.Limiter) (int, error)
	Retire(context.Context, conntrack.Retirement) (int, error)
}

// connections lists the TCP connections of this host; [survey.Host.Established] does.
type connections func(ports map[uint16]bool, most int) ([]survey.Live, error)

// ruleset keeps the rules; *nft.Table is one.
type ruleset interface {
	Apply(nft.Desired, time.Time) error
	Work() (policy.Work, error)
	Intact() (bool, error)
	Foreign() uint64
	Ending(nft.Desired) (map[policy.Selector][]netip.AddrPort, error)
}

// keeper keeps the settings; *sysctl.Keeper is one.
type keeper interface {
	Apply(wanted map[string]int) ([]sysctl.Change, error)
	Admin() (map[string]int, error)
}

// Bounds of what the agent does to entries, whatever is wanted: a second's worth is far above what
// a flood on one core brings in, and far below what would keep a core busy.
const (
	evictionsPerSecond = 200_000
	retimesPerSecond   = 500_000
	adoptionsPerSecond = 100_000
)

// actuator brings rules and settings to what is wanted: live does it, dry says what it would do. It belongs to
// the loop's goroutine.
type actuator interface {
	rules(nft.Desired, time.Time) error
	work() (policy.Work, error)
	intact() (bool, error)
	foreign() uint64
	set(map[string]int) ([]sysctl.Change, error)
}

// mover changes entries of the table: live does it, dryEntries counts what would go. It belongs to the
// goroutine that walks.
type mover interface {
	evict(context.Context, conntrack.Eviction, *policy.Census) (int, error)
	retime(context.Context, conntrack.Retiming) (int, error)
	adopt(context.Context, []policy.Selector) (int, error)
	loosen(context.Context, []netip.AddrPort) (int, error)
	purge(ctx context.Context, p policy.Purge, of conntrack.Parties) (int, error)
	retire(context.Context, conntrack.Retirement) (int, error)
}

// live changes the kernel: it is the loop's actuator and the walks' mover. All that the two share is evicted.
type live struct {
	ruleset
	settings keeper

	entries
	evicting    *rate.Limiter
	retiming    *rate.Limiter
	adopting    *rate.Limiter
	connections connections

	evicted atomic.Uint64 // entries deleted so far, while an eviction goes on too
}

// dry is the actuator of a dry run: it has nothing to write with.
type dry struct {
	settings keeper
	planned  map[string]int
}

// dryEntries is the mover of a dry run: it has nothing to change entries with.
type dryEntries struct{}

func (l *live) rules(d nft.Desired, now time.Time) error {
	return errors.Join(l.adoptEnding(d), l.Apply(d, now))
}

func (l *live) work() (policy.Work, error) {
	w, err := l.Work()
	w.Evicted = l.evicted.Load()
	return w, err
}

func (l *live) intact() (bool, error) { return l.Intact() }

func (l *live) foreign() uint64 { return l.Foreign() }

func (l *live) set(wanted map[string]int) ([]sysctl.Change, error) {
	return l.settings.Apply(wanted)
}

func (l *live) evict(ctx context.Context, e conntrack.Eviction, _ *policy.Census) (int, error) {
	e.Rate, e.Progress = l.evicting, &l.evicted
	return l.Evict(ctx, e)
}

func (l *live) retime(ctx context.Context, r conntrack.Retiming) (int, error) {
	r.Rate = l.retiming
	return l.Retime(ctx, r)
}

func (l *live) purge(ctx context.Context, p policy.Purge, of conntrack.Parties) (int, error) {
	n, err := l.Purge(ctx, p, of, l.evicting)
	l.evicted.Add(uint64(n))
	return n, err
}

func (l *live) retire(ctx context.Context, r conntrack.Retirement) (int, error) {
	r.Rate, r.Progress = l.evicting, &l.evicted
	return l.Retire(ctx, r)
}

func (*dry) rules(nft.Desired, time.Time) error { return nil }
func (*dry) work() (policy.Work, error)         { return policy.Work{}, nil }
func (*dry) intact() (bool, error)              { return true, nil }
func (*dry) foreign() uint64                    { return 0 }

// set returns the changes that wanted would have brought.
func (d *dry) set(wanted map[string]int) ([]sysctl.Change, error) {
	admin, err := d.settings.Admin()
	if err != nil {
		return nil, err
	}
	var changes []sysctl.Change
	for name, to := range wanted {
		from, known := admin[name]
		if was, ok := d.planned[name]; ok {
			from = was
		}
		if known && from != to {
			changes = append(changes, sysctl.Change{Name: name, From: from, To: to})
		}
	}
	for name, from := range d.planned {
		if _, still := wanted[name]; !still {
			changes = append(changes, sysctl.Change{Name: name, From: from, To: admin[name]})
		}
	}
	d.planned = wanted
	slices.SortFunc(changes, func(a, b sysctl.Change) int { return strings.Compare(a.Name, b.Name) })
	return changes, nil
}

// evict counts what the caps would have freed, as far as the census tells.
func (*dryEntries) evict(_ context.Context, e conntrack.Eviction, census *policy.Census) (freed int, err error) {
	if census == nil {
		return 0, nil
	}
	held := make(map[policy.Source]policy.Holding, len(census.Sources))
	for _, s := range census.Sources {
		held[s.Source()] = s
	}
	for _, c := range e.Caps {
		source := held[c.Source()]
		mid, _, _ := census.Estimate(source.Entries)
		excess := mid - c.Keep
		if c.SpareAssured {
			assured, _, _ := census.Estimate(source.Classes[policy.Assured])
			excess = min(excess, mid-assured)
		}
		freed += max(0, excess)
	}
	return freed, nil
}

func (*dryEntries) retime(context.Context, conntrack.Retiming) (int, error) {
	return 0, nil
}

func (*dryEntries) adopt(context.Context, []policy.Selector) (int, error) { return 0, nil }

func (*dryEntries) purge(context.Context, policy.Purge, conntrack.Parties) (int, error) {
	return 0, nil
}

func (*dryEntries) retire(context.Context, conntrack.Retirement) (int, error) { return 0, nil }
