package policy

import (
	"fmt"
	"slices"
	"time"
)

// Bounds of a settle time that doubles: a step that is entered again within forgetAfter settle times of being
// left settles twice as long as before, up to maxSettleFactor times its configured settle time.
const (
	maxSettleFactor = 8
	forgetAfter     = 10
	trialSettles    = 4 // a step that was quiet for this many settle times is taken back on trial below its enter mark
)

// rung is one step of the ladder and what its way down depends on.
type rung struct {
	Step
	engaged    time.Time // zero while it is not engaged
	left       time.Time
	factor     int       // what the settle time is multiplied with
	belowLeave time.Time // since when pressure is below the leave mark; zero while it is not
	belowEnter time.Time
	quiet      time.Time // since when the step's own work is quiet; zero while it is not
	skipped    bool      // it can do nothing on this host: never the top step
}

// settle returns the rung's present settle time, doublings included.
func (r *rung) settle() time.Duration { return r.Settle * time.Duration(r.factor) }

// ladder is the steps in order and how many of them are engaged.
type ladder struct {
	rungs       []rung
	level       int
	changed     time.Time // when the level last changed
	ineffective bool      // the top step has just turned out to bring nothing
}

// newLadder returns a ladder at level 0.
func newLadder(steps []Step) ladder {
	l := ladder{rungs: make([]rung, len(steps))}
	for i, s := range steps {
		l.rungs[i] = rung{Step: s, factor: 1}
	}
	return l
}

// rebuilt returns a ladder of other steps. Those that are engaged here stay engaged as far as there are no others
// below them, and each keeps what is known of it.
func (l *ladder) rebuilt(steps []Step) ladder {
	n := newLadder(steps)
	for i := range n.rungs {
		for _, r := range l.rungs {
			if r.Name == n.rungs[i].Name {
				r.Step = n.rungs[i].Step
				n.rungs[i] = r
			}
		}
		if !n.rungs[i].engaged.IsZero() && n.level == i {
			n.level = i + 1
		}
	}
	for i := n.level; i < len(n.rungs); i++ {
		n.rungs[i].engaged = time.Time{}
	}
	n.changed, n.ineffective = l.changed, l.ineffective
	return n
}

// engaged reports whether the step called name is engaged.
func (l *ladder) engaged(name StepName) bool {
	return slices.ContainsFunc(l.rungs[:l.level], func(r rung) bool { return r.Name == name })
}

// lowest returns the lowest leave mark, below which nothing is ever engaged; 100 without steps.
func (l *ladder) lowest() float64 {
	lowest := 100.0
	for _, r := range l.rungs {
		if !r.skipped {
			lowest = min(lowest, r.Leave)
		}
	}
	return lowest
}

// lowestEnter returns the mark at which the ladder begins; 100 without steps.
func (l *ladder) lowestEnter() float64 {
	for _, r := range l.rungs {
		if !r.skipped {
			return r.Enter
		}
	}
	return 100
}

// observe notes which steps can do nothing here, and since when pressure is below each mark and each
// step's work is quiet.
func (l *ladder) observe(now time.Time, pressure float64, look func(StepName) (skipped, quiet bool)) {
	for i := range l.rungs {
		r := &l.rungs[i]
		skipped, quiet := look(r.Name)
		r.skipped = skipped
		keepSince(&r.belowLeave, now, pressure < r.Leave)
		keepSince(&r.belowEnter, now, pressure < r.Enter)
		keepSince(&r.quiet, now, quiet)
	}
}

// keepSince keeps the time since which something holds.
func keepSince(since *time.Time, now time.Time, holds bool) {
	if !holds {
		*since = time.Time{}
	} else if since.IsZero() {
		*since = now
	}
}

// next returns the level that is wanted now, with the reason. After a top step that brought nothing the next one is
// tried, if pressure is still high enough for the top step.
func (l *ladder) next(now time.Time, r reading) (level int, reason string) {
	level, reason = l.wanted(now, r.pressure)
	if level <= l.level && l.ineffective && r.growing() && l.level > 0 {
		top := l.rungs[l.level-1]
		if r.pressure >= top.Enter && l.above() > l.level {
			level, reason = l.above(), fmt.Sprintf("%s brought nothing and pressure stays at %.0f %%", top.Name, r.pressure)
		}
	}
	l.ineffective = false
	return level, reason
}

// wanted returns the level that pressure asks for: every step whose enter mark is reached at once,
// or one step less when the top step may be taken back, with the reason.
func (l *ladder) wanted(now time.Time, pressure float64) (level int, reason string) {
	for i, r := range l.rungs {
		if pressure >= r.Enter && i >= l.level && !r.skipped {
			level = i + 1
			reason = fmt.Sprintf("pressure %.0f %% reached the enter mark of %s (%g %%)", pressure, r.Name, r.Enter)
		}
	}
	if level > l.level || l.level == 0 {
		return max(level, l.level), reason
	}
	if reason := l.mayLeave(now); reason != "" {
		return l.below(), reason
	}
	return l.level, ""
}

// mayLeave says why the top step may be taken back; it is empty when it may not.
func (l *ladder) mayLeave(now time.Time) string {
	top := &l.rungs[l.level-1]
	settle := top.settle()
	switch {
	case top.skipped:
		return fmt.Sprintf("%s can do nothing here any more", top.Name)
	case l.lasted(now, top.belowLeave) >= settle && l.lasted(now, top.quiet) >= settle:
		return fmt.Sprintf("pressure below the leave mark of %s (%g %%) and its work quiet for %s",
			top.Name, top.Leave, settle)
	case l.lasted(now, top.belowEnter) >= trialSettles*settle && l.lasted(now, top.quiet) >= trialSettles*settle:
		return fmt.Sprintf("%s quiet for %s: taken back on trial below its enter mark (%g %%)",
			top.Name, trialSettles*settle, top.Enter)
	}
	return ""
}

// below returns the level without its top step, and without those under it that can do nothing.
func (l *ladder) below() int {
	level := l.level - 1
	for level > 0 && l.rungs[level-1].skipped {
		level--
	}
	return level
}

// above returns the level with the next step that can do something; the present one if none can.
func (l *ladder) above() int {
	for i := l.level; i < len(l.rungs); i++ {
		if !l.rungs[i].skipped {
			return i + 1
		}
	}
	return l.level
}

// lasted returns how long something has held at this level: a change of level starts the count
// anew, since what was true before it need not be true after.
func (l *ladder) lasted(now, since time.Time) time.Duration {
	if since.IsZero() {
		return -1
	}
	if since.Before(l.changed) {
		since = l.changed
	}
	return now.Sub(since)
}

// set brings the ladder to a level and keeps the memory of each step that is entered or left.
func (l *ladder) set(now time.Time, level int) {
	for i := range l.rungs {
		r := &l.rungs[i]
		switch on := i < level; {
		case on && r.engaged.IsZero():
			r.engaged = now
			r.remember(now)
		case !on && !r.engaged.IsZero():
			r.engaged, r.left = time.Time{}, now
		}
	}
	l.level, l.changed = level, now
}

// remember doubles the settle time of a step that is entered soon after it was left, and halves it again
// for each stretch of quiet.
func (r *rung) remember(now time.Time) {
	if r.left.IsZero() {
		return
	}
	stretch := forgetAfter * r.settle()
	away := now.Sub(r.left)
	if away < stretch {
		r.factor = min(maxSettleFactor, 2*r.factor)
		return
	}
	for ; away >= stretch && r.factor > 1; away -= stretch {
		r.factor /= 2
	}
}
