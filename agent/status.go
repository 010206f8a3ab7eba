package agent

import (
	"net/netip"
	"slices"
	"time"

	"ctguard/agent/control"
	"ctguard/policy"
)

// publish makes the state after a tick visible to clients and in the metrics.
func (l *loop) publish(o policy.Observation, took time.Duration) {
	d := l.decision
	s := &control.Status{
		Mode: l.mode(), Version: Version, Profile: l.config.Policy.Profile,
		Inside: append([]netip.Prefix{}, l.facts.Inside...),
		Level:  d.Posture.Level, Fill: round(d.Fill), Pressure: round(d.Pressure),
		Count: o.Count, Capacity: o.Capacity, Rate: round(d.Rate), KernelDrops: o.Kernel.Drop + o.Kernel.InsertFailed,
		Steps: l.machine.Steps(), Selectors: l.machine.Selectors(), Limited: l.limited(), Holders: l.holders,
		Allow:    slices.Clone(l.facts.Allow),
		Ordinary: l.machine.DayStatus(),
		Override: l.machine.Override(), Words: append([]policy.Word{}, l.machine.Words()...),
		Degraded: []string{}, Missing: append([]string{}, l.missing...), Slower: append([]string{}, l.slower...),
		Evicted: o.Work.Evicted,
		Events:  l.board.Recent(20), Time: o.Time, TickSeconds: took.Seconds(), RulesSeconds: l.slowest.Seconds(),
	}
	if s.Level > 0 {
		s.TopStep = s.Steps[s.Level-1].Name
	}
	if d.SecondsToFull != nil {
		full := round(*d.SecondsToFull)
		s.SecondsToFull = &full
	}
	for part, text := range l.troubles {
		s.Degraded = append(s.Degraded, part+": "+text)
	}
	slices.Sort(s.Degraded)
	l.board.Publish(s)
}

// mode says who decides: ctguard, an operator, or nobody.
func (l *loop) mode() string {
	switch {
	case l.dryRun:
		return "dry-run"
	case l.machine.Override() != nil:
		return "hold"
	}
	return "auto"
}

// limited returns the sources that are limited, with what they held in the last census.
func (l *loop) limited() []control.LimitedStatus {
	if len(l.decision.Posture.Limits) > 0 && l.census != nil && l.held == nil {
		l.held = make(map[policy.Source]int, len(l.census.Sources))
		for _, s := range l.census.Sources {
			l.held[s.Source()], _, _ = l.census.Estimate(s.Entries)
		}
	}
	list := make([]control.LimitedStatus, 0, len(l.decision.Posture.Limits))
	for _, limit := range l.decision.Posture.Limits {
		one := control.LimitedStatus{Prefix: limit.Prefix, Zone: limit.Zone, Kind: limit.Kind.String(),
			Entries: l.held[limit.Source()], Until: limit.Until, Reason: limit.Reason,
			ButTCP: limit.ButTCP, Flows: []string{}, Peers: len(limit.Peers)}
		for _, class := range limit.Flows {
			one.Flows = append(one.Flows, class.String())
		}
		list = append(list, one)
	}
	return list
}
