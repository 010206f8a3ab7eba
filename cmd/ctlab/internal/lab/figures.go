package lab

import (
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"ctguard/cmd/ctlab/internal/measure"
)

const (
	// bucketWidth is the resolution of success over time.
	bucketWidth = 250 * time.Millisecond
	// grace is how long after the onset a guard may take.
	grace = time.Second
	// served is the share of requests that counts as service.
	served = 99.0
	// nearFull is the fill that hurts.
	nearFull = 95.0
	// baselineMargin is how much above its expected value fill may be and yet count as baseline.
	baselineMargin = 5.0
	// timeWait is how long an ended connection stays in the table, in seconds, and
	// udpWait an answered datagram.
	timeWait = 120
	udpWait  = 30
)

// result turns what was recorded into figures.
func (r *run) result(out outcome) *Result {
	onset := r.sc.Calm
	end := onset + r.sc.AttackFor
	samples := r.sampler.samples
	total := time.Duration(0)
	if n := len(samples); n > 0 {
		total = time.Duration(samples[n-1].Seconds * float64(time.Second))
	}
	res := &Result{
		Scenario: r.sc, Kernel: kernel(), CPUs: runtime.NumCPU(),
		Flood: r.floodFigures(out),
		Fill:  fill(samples, onset, end),
		HTTP:  serviceFigures(out.users.HTTP, onset, end, total),
		UDP:   serviceFigures(out.users.UDP, onset, end, total),
		Lasting: Lasting{Opened: out.users.Lasting, Lost: out.users.Lost, Resets: out.users.Resets,
			SessionAlive: out.users.Session},
		Samples:  samples,
		Failures: out.users.Failures,
		Leaked:   out.leaked, LeakExamples: out.examples,

		SecondsToServed:   measure.Recovery(out.users.HTTP, onset, end, bucketWidth, served),
		SecondsToBaseline: measure.Settled(samples, end.Seconds(), r.baseline),
	}
	if out.ordinaryBefore > 0 {
		kept := 100 * float64(out.ordinaryAfter) / float64(out.ordinaryBefore)
		res.OrdinaryKept = &kept
	}
	for i, p := range r.site.parties {
		got := out.parties[i]
		if p.late {
			later(got.HTTP, onset)
			later(got.UDP, onset)
		}
		res.Parties = append(res.Parties, Party{p.name, p.accepted, serviceFigures(got.HTTP, onset, end, total),
			serviceFigures(got.UDP, onset, end, total), Lasting{got.Lasting, got.Lost, got.Resets, got.Session}, got.Failures})
	}
	res.Guard = r.guardFigures(total)
	for _, s := range samples {
		res.MaxLevel = max(res.MaxLevel, s.Level)
	}
	if g, ok := r.guard.(*ctguard); ok {
		res.Events = g.status().Events
		res.Guard.StopSeconds = g.took
	}
	if _, ok := r.guard.(passive); !ok {
		res.AtWork = r.before.diff(r.atWork)
		res.LeftBehind = r.before.diff(r.after)
	}
	return res
}

// later shifts requests whose time counts from the onset.
func later(requests []measure.Request, onset time.Duration) {
	for i := range requests {
		requests[i].At += onset
	}
}

func (r *run) floodFigures(out outcome) Flood {
	f := Flood{Result: out.flood, AskedRate: r.attack.spec(r.sc, r.site).Rate}
	if f.Seconds > 0 {
		f.AchievedRate = float64(f.Sent) / f.Seconds
	}
	return f
}

func (r *run) guardFigures(total time.Duration) Cost {
	c := r.costAfter
	c.CPUSeconds -= r.costBefore.CPUSeconds
	if total > 0 {
		c.CPUPercent = 100 * c.CPUSeconds / total.Seconds()
	}
	return c
}

// baseline is the fill that would be there without an attack: the ordinary users and what the
// clients themselves leave in the table, which grows for the first two minutes.
func (r *run) baseline(seconds float64) float64 {
	own := float64(r.sc.HTTPRate)*min(seconds, timeWait) + float64(r.sc.UDPRate)*min(seconds, udpWait)
	return 100*(float64(r.sc.Background)+own)/float64(r.sc.Capacity) + baselineMargin
}

// settled reports whether the baseline is back now.
func (r *run) settled() bool {
	if r.guard.level() > 0 {
		return false
	}
	c, err := readCounters(r.site.protected)
	if err != nil {
		return true // the sampler reports it
	}
	return 100*float64(c.count)/float64(r.sc.Capacity) <= r.baseline(r.zero.Since().Seconds())
}

func fill(samples []measure.Sample, onset, end time.Duration) Fill {
	f := Fill{
		Calm:         measure.Mean(samples, 0, onset.Seconds()),
		Peak:         measure.Peak(samples, onset.Seconds(), end.Seconds()),
		AttackEnd:    measure.Mean(samples, end.Seconds()-0.5, end.Seconds()),
		SecondsAbove: measure.SecondsAbove(samples, nearFull),
	}
	if n := len(samples); n > 0 {
		last := samples[n-1]
		f.End, f.Drops, f.EarlyDrops = last.Fill, last.Drops, last.EarlyDrops
	}
	return f
}

func serviceFigures(reqs []measure.Request, onset, end, total time.Duration) Service {
	attack := measure.Between(reqs, onset, end)
	return Service{
		Calm:          measure.Success(measure.Between(reqs, 0, onset)),
		Onset:         measure.Success(measure.Between(reqs, onset, onset+grace)),
		During:        measure.Success(measure.Between(reqs, onset+grace, end)),
		After:         measure.Success(measure.Between(reqs, end, total)),
		P50:           measure.Quantile(attack, 0.5),
		P99:           measure.Quantile(attack, 0.99),
		LongestOutage: measure.Outage(reqs, total).Seconds(),
		Buckets:       measure.Buckets(reqs, bucketWidth, total),
	}
}

func kernel() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "unknown"
	}
	return unix.ByteSliceToString(u.Release[:])
}
