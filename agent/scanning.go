package agent

import (
	"context"
	"maps"
	"net/netip"
	"time"

	"ctguard/agent/conntrack"
	"ctguard/policy"
)

// scanning looks at who holds the table, as often as the time budget allows.
func (l *loop) scanning(now time.Time) walk {
	options := conntrack.ScanOptions{Budget: scanBudget, V4Bits: l.config.V4Bits, V6Bits: l.config.V6Bits,
		MaxSources: listedPerLimit * l.config.Policy.MaxLimited, Apart: l.apart(),
		OneSided: l.decision.Posture.OneSided, Own: l.facts.Local, Inside: l.facts.Inside}
	if l.census != nil {
		options.Closer = l.census.Suspects(l.facts.Host, l.decision.Posture.Limits)
	}
	var pause time.Duration
	calm := l.decision.Posture.Level == 0 && !l.decision.Growing
	switch kind := l.decision.Scan; {
	case kind == policy.NoScan:
		return nil
	case kind == policy.WholeScan:
		pause = max(minScanPause, l.rest(0))
	case (calm || l.decision.Steady) && now.Sub(l.learning) >= l.learnPause():
		options.Limit, l.learning = learnSize, now
	case kind == policy.LearnScan:
		return nil
	case calm:
		options.Limit, pause = sampleSize, idlePause
	case l.decision.Growing:
		options.Limit, pause = sampleSize, max(minScanPause, l.rest(sampleSize))
	default:
		options.Limit, pause = sampleSize, max(samplePause, l.rest(sampleSize))
	}
	if l.census != nil && now.Sub(l.census.Time) < pause {
		return nil
	}
	options.Silences = l.silences()
	return scanWalk{options}
}

// silences asks a scan how long conversations are silent, of those that tighten could cut.
func (l *loop) silences() *conntrack.SilenceOptions {
	floors := policy.WatchedFloors(l.config.Policy.Floors, l.facts.Admin)
	if len(floors) == 0 {
		return nil
	}
	inForce := l.inForce()
	maps.DeleteFunc(inForce, func(name string, _ int) bool { _, timeout := l.config.Policy.Floors[name]; return !timeout })
	return &conntrack.SilenceOptions{InForce: inForce, Floors: floors}
}

// learnPause returns how long to rest between two scans to learn from: not long while little is known.
func (l *loop) learnPause() time.Duration {
	if l.census == nil {
		return 0
	}
	share := learnShare
	if l.learnt < eagerScans {
		share = hurryShare // a few scans in the first minute: what is not known yet can't be spared
	}
	return max(min(learnPause<<max(0, min(l.learnt-1, 10)), learnRest), time.Duration(share)*l.census.Took)
}

// apart returns the IPv6 addresses in whose networks each address is a source of its own: where an allowlisted one,
// such as this router's, is among others.
func (l *loop) apart() (list []netip.Addr) {
	for _, p := range l.decision.Posture.Allow {
		if p.Addr().Is6() && p.IsSingleIP() {
			list = append(list, p.Addr())
		}
	}
	return list
}

// scanWalk makes a census.
type scanWalk struct{ options conntrack.ScanOptions }

func (s scanWalk) do(ctx context.Context, w walker) func(*loop) {
	census, err := w.scanner.Scan(ctx, s.options)
	return func(l *loop) {
		if l.trouble("scan", err); err == nil {
			l.census, l.fresh, l.evicting, l.held = census, true, 0, nil
			l.holders = holders(census, l.machine.OrdinaryDay(), l.facts.Host) // once a census: status is told far more often
		}
	}
}

// rest returns how long to rest between the last census and one of so many entries, 0 for all: for the time
// that the last one and evicting what it found took, or as little as a sample will take.
func (l *loop) rest(entries int) time.Duration {
	if l.census == nil {
		return 0
	}
	took := l.census.Took + l.evicting
	if l.decision.Hurry && l.census.Whole {
		if l.decision.Compare {
			return hurryPause // before that nobody who only passes through the table is limited
		}
		return max(hurryPause, hurryShare*took)
	}
	if l.decision.Hurry {
		return hurryShare * took // a sample told no flows a second
	}
	if seen := l.census.Seen; entries > 0 && seen > entries {
		took = l.census.Took * time.Duration(entries) / time.Duration(seen)
	}
	return calmShare * took
}
