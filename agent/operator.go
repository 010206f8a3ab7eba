package agent

import (
	"fmt"
	"slices"
	"time"

	"ctguard/agent/control"
	"ctguard/agent/state"
	"ctguard/policy"
)

// maxWords is how many prefixes operators may have limited or released at a time.
const maxWords = 1000

// answer does what a client asks for; the lines are those of an explanation.
func (l *loop) answer(request control.Request) (lines []string, err error) {
	switch r := request.(type) {
	case control.Explain:
		return l.machine.Explain(r.Prefix), nil
	case control.Hold:
		err = l.hold(r)
	case control.Auto:
		err = l.auto()
	case control.Baseline:
		err = l.backToBaseline(r)
	case control.Word:
		err = l.word(r)
	default:
		return nil, fmt.Errorf("nobody answers %T", request)
	}
	l.due = true
	return nil, err
}

// hold sets an override.
func (l *loop) hold(r control.Hold) error {
	if most := len(l.config.Policy.Steps); r.Kind != policy.Freeze && (r.Level < 0 || r.Level > most) {
		return fmt.Errorf("level %d is not between 0 and %d, the number of steps on this ladder", r.Level, most)
	}
	ov := &policy.Override{Kind: r.Kind, Level: r.Level, Until: time.Now().Add(r.For), Reason: r.Reason}
	l.machine.SetOverride(ov)
	l.emit(policy.Event{Kind: policy.OverrideEvent, Reason: fmt.Sprintf("%s, for %s", ov, r.For)})
	return l.remember()
}

// auto gives the level back.
func (l *loop) auto() error {
	if ov := l.machine.Override(); ov != nil {
		l.emit(policy.Event{Kind: policy.OverrideEvent, Reason: fmt.Sprintf("given back by the operator: %s", ov)})
	}
	l.machine.SetOverride(nil)
	return l.remember()
}

// backToBaseline drops every limit, the operator's too, and pins level 0 for a while.
func (l *loop) backToBaseline(r control.Baseline) error {
	for _, word := range l.machine.Words() {
		if !word.Release {
			word.Until = time.Now()
			l.machine.Say(word)
		}
	}
	return l.hold(control.Hold{Kind: policy.Pin, For: r.For, Reason: r.Reason})
}

// word takes an operator's word on one prefix.
func (l *loop) word(r control.Word) error {
	p := r.Prefix
	if allowed := slices.IndexFunc(l.facts.Allow, p.Overlaps); !r.Release && allowed >= 0 {
		return fmt.Errorf("%s is on the allowlist as %s: it is never limited", p, l.facts.Allow[allowed])
	}
	words := l.machine.Words()
	known := func(w policy.Word) bool { return w.Prefix == p }
	if len(words) >= maxWords && !slices.ContainsFunc(words, known) {
		return fmt.Errorf("%d prefixes are limited or released by operators already: let some of them end first", len(words))
	}
	l.machine.Say(policy.Word{Prefix: p, Release: r.Release, Until: time.Now().Add(r.For), Reason: r.Reason})
	done := "limited"
	if r.Release {
		done = "released"
	}
	l.emit(policy.Event{Kind: policy.LimitEvent, Prefix: p,
		Reason: fmt.Sprintf("%s by the operator for %s: %s", done, r.For, r.Reason)})
	return l.remember()
}

// remember writes the operators' words down.
func (l *loop) remember() error { return l.state.Remember(state.WordsOf(l.machine)) }
