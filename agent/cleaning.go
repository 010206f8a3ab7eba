package agent

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"ctguard/agent/conntrack"
	"ctguard/policy"
)

// purging deletes what a flood left of the classes that are to be purged.
func (l *loop) purging(now time.Time) walk {
	classes := l.decision.Posture.Purges
	if len(classes) == 0 {
		l.purged = backoff{}
		return nil
	}
	if !l.purged.due(now, purgePause) || l.purged.at.After(l.last.Time) {
		return nil
	}
	classes = slices.DeleteFunc(slices.Clone(classes), func(p policy.Purge) bool {
		return p.Handshakes && now.Sub(l.unfinished) < max(p.Unfinished, purgeShare*l.unfinishedCost)
	})
	if len(classes) == 0 {
		return nil
	}
	l.purged.at = now
	return purgeWalk{classes, conntrack.Parties{Own: l.facts.Local, Inside: l.facts.Inside,
		Spared: l.decision.Posture.Allow}, now}
}

// purgeWalk deletes entries of classes.
type purgeWalk struct {
	classes []policy.Purge
	of      conntrack.Parties
	at      time.Time // when it sets out
}

func (p purgeWalk) do(ctx context.Context, w walker) func(*loop) {
	var err error
	all := 0
	useful := false
	cost := time.Duration(-1) // of what is purged at a pace of its own
	for _, class := range p.classes {
		before := cpuTime()
		n, fault := w.mover.purge(ctx, class, p.of)
		all, err = all+n, errors.Join(err, fault)
		if class.Handshakes {
			useful, cost = true, cpuTime()-before
		}
	}
	return func(l *loop) {
		if cost >= 0 {
			l.unfinished, l.unfinishedCost = p.at, cost
		}
		l.purged.worked(time.Now(), useful || all >= worthAWalk, purgePause, purgeRest)
		l.due = true // what is left shows at the next tick
		l.trouble("purge", err)
	}
}

// backoff is the pace of a walk that is due again and again: one that brings nothing comes less often.
type backoff struct {
	at    time.Time // when the last one ended
	pause time.Duration
}

// worthAWalk is how many entries a walk must have freed to have been worth it.
const worthAWalk = 100

// due reports whether the next walk may begin; least is the shortest pause.
func (b backoff) due(now time.Time, least time.Duration) bool {
	return now.Sub(b.at) >= max(b.pause, least)
}

// worked takes in how a walk went that has just ended: the pause doubles, from least up to most, unless it was useful.
func (b *backoff) worked(now time.Time, useful bool, least, most time.Duration) {
	b.at = now
	b.pause = min(2*max(b.pause, least), most)
	if useful {
		b.pause = least
	}
}

// retiring lets finished entries go.
func (l *loop) retiring(now time.Time) walk {
	if r := l.retirement(now); r != nil {
		return retireWalk{*r}
	}
	return nil
}

// retirement says what is finished, when it is time to let that go; nil when it is not.
func (l *loop) retirement(now time.Time) *conntrack.Retirement {
	wanted := l.decision.Posture.Retire
	if wanted.Silent < l.finishedAfter {
		l.finished.pause = 0 // passes that brought nothing looked for what has been silent for longer
	}
	l.finishedAfter = wanted.Silent
	if wanted.Silent == 0 {
		return nil
	}
	share := time.Duration(retireShare)
	if wanted.Most == 0 {
		share = retireHurry
	}
	if !l.finished.due(now, max(retirePause, share*l.finishedCost)) {
		return nil
	}
	l.finished.at = now
	own, services := l.facts.Own, l.facts.Services
	if l.facts.FiltersOutput {
		services = nil // one that speaks again needs the entry of the question
	}
	var proxied []netip.AddrPort
	for _, s := range l.decision.Posture.Synproxy {
		if s.Forwarded() {
			proxied = append(proxied, outside(s))
		}
	}
	return &conntrack.Retirement{Timeouts: l.inForce(), Retimed: l.given(now), Silent: wanted.Silent, Ports: wanted.Ports,
		Dead: wanted.Dead, Most: wanted.Most, Services: services, Proxied: proxied,
		Local: func(addr netip.Addr) bool { return slices.Contains(own, addr) }}
}

// retireWalk lets finished entries go.
type retireWalk struct{ retirement conntrack.Retirement }

func (r retireWalk) do(ctx context.Context, w walker) func(*loop) {
	before := cpuTime()
	n, err := w.mover.retire(ctx, r.retirement)
	cost := cpuTime() - before
	return func(l *loop) {
		l.finished.worked(time.Now(), n >= worthAWalk, retirePause, retireRest)
		l.finishedCost = cost
		l.retired += uint64(n)
		l.due = l.due || n > 0 // what is left decides whether more must be done
		l.trouble("retire", err)
	}
}

// cpuTime is the processor time that this process has used, in the kernel too: one thread of a pass reads and another
// sends changes. A pace that is a share of it holds on a host where everybody waits for the processors, as under
// attack; by the clock a pass takes many times as long there.
func cpuTime() time.Duration {
	var used unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &used) != nil {
		return 0 // it does not fail for the process itself
	}
	return time.Duration(used.Utime.Nano() + used.Stime.Nano())
}
