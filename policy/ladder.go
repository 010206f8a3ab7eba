package policy

import (
	"fmt"
	"time"
)

// Bounds of a hold that doubles: a step that is entered again within forgetAfter holds of being
// left holds twice as long as before, up to maxHoldFactor times its configured hold.
const (
	maxHoldFactor = 8
	forgetAfter   = 10
	trialHolds    = 4 // a step that was quiet for this many holds is taken back on trial below its enter mark
)

// rung is one step of the ladder and what its way down depends on.
type rung struct {
	Step
	engaged    time.Time // zero while it is not engaged
	left       time.Time
	factor     int       // what the hold is multiplied with
	belowLeave time.Time // since when pressure is below the leave mark; zero while it is not
	belowEnter time.Time
	quiet      time.Time // since when the step's own work is quiet; zero while it is not
	skipped    bool      // it can do nothing on this host: never the top step
}

// ladder is the steps in order and how many of them are engaged.
type ladder struct {
	rungs   []rung
	level   int
	changed time.Time // when the level last changed
}

// newLadder returns a ladder at level 0.
func newLadder(steps []Step) ladder {
	l := ladder{rungs: make([]rung, len(steps))}
	for i, s := range steps {
		l.rungs[i] = rung{Step: s, factor: 1}
	}
	return l
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
func (l *ladder) observe(now time.Time, pressure float64, quiet, skipped func(StepName) bool) {
	for i := range l.rungs {
		r := &l.rungs[i]
		r.skipped = skipped(r.Name)
		keepSince(&r.belowLeave, now, pressure < r.Leave)
		keepSince(&r.belowEnter, now, pressure < r.Enter)
		keepSince(&r.quiet, now, quiet(r.Name))
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
	top := &l.rungs[l.level-1]
	hold := top.Hold * time.Duration(top.factor)
	switch {
	case top.skipped:
		return l.below(), fmt.Sprintf("%s can do nothing here any more", top.Name)
	case l.lasted(now, top.belowLeave) >= hold && l.lasted(now, top.quiet) >= hold:
		return l.below(), fmt.Sprintf("pressure below the leave mark of %s (%g %%) and its work quiet for %s", top.Name, top.Leave, hold)
	case l.lasted(now, top.belowEnter) >= trialHolds*hold && l.lasted(now, top.quiet) >= trialHolds*hold:
		return l.below(), fmt.Sprintf("%s quiet for %s: taken back on trial below its enter mark (%g %%)", top.Name, trialHolds*hold, top.Enter)
	}
	return l.level, ""
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

// remember doubles the hold of a step that is entered soon after it was left, and halves it again
// for each stretch of quiet.
func (r *rung) remember(now time.Time) {
	if r.left.IsZero() {
		return
	}
	stretch := forgetAfter * r.Hold * time.Duration(r.factor)
	away := now.Sub(r.left)
	if away < stretch {
		r.factor = min(maxHoldFactor, 2*r.factor)
		return
	}
	for ; away >= stretch && r.factor > 1; away -= stretch {
		r.factor /= 2
	}
}
